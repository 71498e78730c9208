/* lean ps: the servers that run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/command.h"
#include "launch/registry.h"
#include "proto/base/log.h"

static const struct option_spec ps_options[] = {
    {"watch", 0, OPTION_FLAG, .help = "again every second, until interrupted"},
    {0},
};
static const struct option_spec *const ps_tables[] = {ps_options, NULL};

static const char *text_of(struct json_object *facts, const char *name)
{
    struct json_object *value;
    return json_object_object_get_ex(facts, name, &value) ? json_object_get_string(value) : "-";
}

static double number_of(struct json_object *facts, const char *name)
{
    struct json_object *value;
    return json_object_object_get_ex(facts, name, &value) ? json_object_get_double(value) : 0;
}

/* Resident memory of a process. */
static uint64_t memory_of(pid_t pid)
{
    char path[64];
    unsigned long long n_page = 0;
    snprintf(path, sizeof(path), "/proc/%d/statm", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    if (fscanf(file, "%*u %llu", &n_page) != 1) n_page = 0;
    fclose(file);
    return n_page * (uint64_t)sysconf(_SC_PAGESIZE);
}

static double uptime_of(struct json_object *facts)
{
    return (double)time(NULL) - number_of(facts, "started");
}

static void print_table(const struct registry_entry *entries, size_t n)
{
    static const char *const titles[] = {"NAME",  "PID",   "RANKS", "MODEL",  "CTX", "SLOTS",
                                         "QUEUE", "TOK/S", "MEM",   "UPTIME", "URL"};
    enum { N_COLUMN = sizeof(titles) / sizeof(titles[0]), CELL = 128 };
    char(*cells)[N_COLUMN][CELL] = calloc(n + 1, sizeof(*cells));
    int width[N_COLUMN] = {0};
    if (!cells) return;
    for (size_t c = 0; c < N_COLUMN; c++)
        snprintf(cells[0][c], CELL, "%s", titles[c]);
    for (size_t i = 0; i < n; i++) {
        struct json_object *facts = entries[i].facts;
        char memory[24], uptime[24];
        char(*row)[CELL] = cells[i + 1];
        snprintf(row[0], CELL, "%s", text_of(facts, "name"));
        snprintf(row[1], CELL, "%d", (int)entries[i].pid);
        snprintf(row[2], CELL, "%s", text_of(facts, "ranks"));
        snprintf(row[3], CELL, "%s", text_of(facts, "model"));
        snprintf(row[4], CELL, "%s", text_of(facts, "ctx"));
        snprintf(row[5], CELL, "%s", text_of(facts, "slots"));
        snprintf(row[6], CELL, "%s", text_of(facts, "queue"));
        snprintf(row[7], CELL, "%.1f", number_of(facts, "tokens_per_second"));
        snprintf(row[8], CELL, "%s", log_format_bytes(memory_of(entries[i].pid), memory));
        snprintf(row[9], CELL, "%s", log_format_seconds(uptime_of(facts), uptime));
        snprintf(row[10], CELL, "%s", text_of(facts, "url"));
    }
    for (size_t i = 0; i <= n; i++)
        for (size_t c = 0; c < N_COLUMN; c++)
            if ((int)strlen(cells[i][c]) > width[c]) width[c] = (int)strlen(cells[i][c]);
    for (size_t i = 0; i <= n; i++)
        for (size_t c = 0; c < N_COLUMN; c++)
            printf("%-*s%s", c + 1 < N_COLUMN ? width[c] : 0, cells[i][c],
                   c + 1 < N_COLUMN ? "  " : "\n");
    free(cells);
}

static void print_json(const struct registry_entry *entries, size_t n)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < n; i++) {
        struct json_object *facts = json_object_get(entries[i].facts);
        json_object_object_add(facts, "memory_bytes",
                               json_object_new_int64((int64_t)memory_of(entries[i].pid)));
        json_object_object_add(facts, "uptime_seconds",
                               json_object_new_int64((int64_t)uptime_of(facts)));
        json_object_array_add(list, facts);
    }
    puts(json_object_to_json_string_ext(list,
                                        JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(list);
}

static enum lm_status print_servers(const struct options *options, struct lm_error *err)
{
    struct registry_entry *entries;
    size_t n;
    const enum lm_status status = registry_list(&entries, &n, err);
    if (status != LM_OK) return status;
    if (options_flag(options, "json"))
        print_json(entries, n);
    else
        print_table(entries, n);
    registry_free_list(entries, n);
    return LM_OK;
}

static enum lm_status run_ps(struct options *options, struct lm_error *err)
{
    const bool clears = isatty(STDOUT_FILENO) && !options_flag(options, "json");
    if (!options_flag(options, "watch")) return print_servers(options, err);
    enum lm_status status = LM_OK;
    while (status == LM_OK) {
        if (clears) fputs("\x1b[H\x1b[2J", stdout);
        status = print_servers(options, err);
        if (fflush(stdout)) break; /* whoever read it has left */
        sleep(1);
    }
    return status;
}

const struct command command_ps = {
    .name = "ps",
    .usage = "",
    .summary = "list the servers that run",
    .options = ps_tables,
    .run = run_ps,
};
