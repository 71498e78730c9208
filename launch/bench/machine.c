/* Facts of /proc, /etc and the compiler. */
#include "launch/bench/machine.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* The value behind "NAME   : " or NAME="..." of a file's first such line; NULL: there is none. */
static struct json_object *line_of(const char *path, const char *name, const char *separators)
{
    char *line = NULL;
    size_t size = 0;
    struct json_object *found = NULL;
    const size_t n = strlen(name);
    FILE *file = fopen(path, "re");
    while (file && !found && getline(&line, &size, file) > 0) {
        if (strncmp(line, name, n) || !strchr(separators, line[n])) continue;
        char *value = line + n + strspn(line + n, separators);
        value[strcspn(value, "\"\n")] = 0;
        found = json_object_new_string(value);
    }
    free(line);
    if (file) fclose(file);
    return found;
}

struct json_object *machine_host(void)
{
    struct json_object *host = json_object_new_object();
    struct utsname system;
    const long n_page = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    if (uname(&system)) memset(&system, 0, sizeof(system));
    json_object_object_add(host, "name", json_object_new_string(system.nodename));
    json_object_object_add(host, "cpu", line_of("/proc/cpuinfo", "model name", "\t :"));
    json_object_object_add(host, "cores", json_object_new_int64(sysconf(_SC_NPROCESSORS_ONLN)));
    json_object_object_add(host, "memory_bytes",
                           json_object_new_int64((int64_t)n_page * page_bytes));
    json_object_object_add(host, "kernel", json_object_new_string(system.release));
    json_object_object_add(host, "os", line_of("/etc/os-release", "PRETTY_NAME", "=\""));
    return host;
}

struct json_object *machine_build(void)
{
    struct json_object *build = json_object_new_object();
    json_object_object_add(build, "version", json_object_new_string(LEAN_VERSION));
    json_object_object_add(build, "commit", json_object_new_string(LEAN_COMMIT));
    json_object_object_add(build, "compiler", json_object_new_string(__VERSION__));
    return build;
}

struct json_object *machine_time(void)
{
    char text[32];
    const time_t now = time(NULL);
    struct tm parts;
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
    return json_object_new_string(text);
}
