#include "launch/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/config.h"
#include "proto/base/read_all.h"

enum { MAX_FILE_BYTES = 1 << 16, BACKLOG = 16, ANSWER_TIMEOUT_MS = 500, PATH_SIZE = 256 };

struct registry {
    char folder[PATH_SIZE];
    int lock_fd, socket_fd;
};

/* ---- files ---- */

/* Ours alone, or somebody else could pass for our servers. */
static enum lm_status open_folder(char folder[PATH_SIZE], struct lm_error *err)
{
    const char *runtime = config_environment("XDG_RUNTIME_DIR");
    const char *temporary = config_environment("TMPDIR");
    struct stat info;
    const int n = runtime ? snprintf(folder, PATH_SIZE, "%s/lean", runtime)
                          : snprintf(folder, PATH_SIZE, "%s/lean-%u",
                                     temporary ? temporary : "/tmp", (unsigned)getuid());
    if (n >= PATH_SIZE) return lm_fail(err, LM_E_LIMIT, "%s: the path is too long", folder);
    if (mkdir(folder, 0700) && errno != EEXIST) return lm_fail_errno(err, "%s", folder);
    if (lstat(folder, &info)) return lm_fail_errno(err, "%s", folder);
    if (S_ISDIR(info.st_mode) && info.st_uid == getuid() && !(info.st_mode & 022)) return LM_OK;
    return lm_fail(err, LM_E_IO, "%s is not a folder that only its owner writes", folder);
}

static void make_path(char path[PATH_SIZE + 32], const char *folder, pid_t pid, const char *ending)
{
    snprintf(path, PATH_SIZE + 32, "%s/%d.%s", folder, (int)pid, ending);
}

static bool make_name(struct sockaddr_un *name, const char *folder, pid_t pid)
{
    char path[PATH_SIZE + 32];
    make_path(path, folder, pid, "sock");
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(name->sun_path)) return false;
    strcpy(name->sun_path, path);
    return true;
}

/* ---- for a server ---- */

static enum lm_status listen_for_questions(struct registry *registry, struct lm_error *err)
{
    struct sockaddr_un name;
    if (!make_name(&name, registry->folder, getpid()))
        return lm_fail(err, LM_E_LIMIT, "%s: too long for a socket", registry->folder);
    registry->socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(name.sun_path);
    if (registry->socket_fd < 0 ||
        bind(registry->socket_fd, (struct sockaddr *)&name, sizeof(name)) ||
        chmod(name.sun_path, 0600) || listen(registry->socket_fd, BACKLOG))
        return lm_fail_errno(err, "%s", name.sun_path);
    return LM_OK;
}

enum lm_status registry_enter(struct registry **out, struct json_object *facts,
                              struct lm_error *err)
{
    char path[PATH_SIZE + 32];
    struct registry *registry = calloc(1, sizeof(*registry));
    if (!registry) return lm_fail(err, LM_E_NO_MEM, "no memory to register the server");
    registry->lock_fd = registry->socket_fd = -1;
    enum lm_status status = open_folder(registry->folder, err);
    if (status == LM_OK) {
        make_path(path, registry->folder, getpid(), "json");
        registry->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (registry->lock_fd < 0 || flock(registry->lock_fd, LOCK_EX | LOCK_NB))
            status = lm_fail_errno(err, "%s", path);
    }
    if (status == LM_OK) status = registry_update(registry, facts, err);
    if (status == LM_OK) status = listen_for_questions(registry, err);
    if (status != LM_OK) {
        registry_leave(registry);
        return status;
    }
    *out = registry;
    return LM_OK;
}

enum lm_status registry_update(struct registry *registry, struct json_object *facts,
                               struct lm_error *err)
{
    json_object_object_add(facts, "pid", json_object_new_int(getpid()));
    const char *text = json_object_to_json_string_ext(facts, JSON_C_TO_STRING_PLAIN |
                                                                 JSON_C_TO_STRING_NOSLASHESCAPE);
    const size_t n = strlen(text);
    /* whoever reads a part of it takes the server for one that is just beginning */
    if (ftruncate(registry->lock_fd, 0) || pwrite(registry->lock_fd, text, n, 0) != (ssize_t)n)
        return lm_fail_errno(err, "%s", registry->folder);
    return LM_OK;
}

int registry_fd(const struct registry *registry)
{
    return registry->socket_fd;
}

void registry_answer(struct registry *registry, struct json_object *now)
{
    const char *text = json_object_to_json_string_ext(now, JSON_C_TO_STRING_PLAIN |
                                                               JSON_C_TO_STRING_NOSLASHESCAPE);
    const int fd = accept4(registry->socket_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    /* it fits the socket's buffer; who asks and does not read gets nothing */
    (void)!send(fd, text, strlen(text), MSG_NOSIGNAL);
    close(fd);
}

void registry_leave(struct registry *registry)
{
    char path[PATH_SIZE + 32];
    if (!registry) return;
    if (registry->socket_fd >= 0) {
        make_path(path, registry->folder, getpid(), "sock");
        unlink(path);
        close(registry->socket_fd);
    }
    if (registry->lock_fd >= 0) {
        make_path(path, registry->folder, getpid(), "json");
        unlink(path);
        close(registry->lock_fd);
    }
    free(registry);
}

/* ---- for those who ask ---- */

/* Whether some process holds the lock of a status file. */
static bool is_locked(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    const bool locked = flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

bool registry_lives(pid_t pid)
{
    char folder[PATH_SIZE], path[PATH_SIZE + 32];
    if (open_folder(folder, NULL) != LM_OK) return false;
    make_path(path, folder, pid, "json");
    return is_locked(path);
}

/* What the server says of itself now; NULL: nothing in time. */
static struct json_object *ask(const char *folder, pid_t pid)
{
    char text[4096];
    size_t n = 0;
    ssize_t n_read = 0;
    struct sockaddr_un name;
    if (!make_name(&name, folder, pid)) return NULL;
    struct pollfd answer = {.events = POLLIN};
    answer.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (answer.fd < 0) return NULL;
    if (!connect(answer.fd, (struct sockaddr *)&name, sizeof(name)))
        while (n < sizeof(text) - 1 && poll(&answer, 1, ANSWER_TIMEOUT_MS) == 1 &&
               (n_read = read(answer.fd, text + n, sizeof(text) - 1 - n)) > 0)
            n += (size_t)n_read;
    close(answer.fd);
    text[n] = '\0';
    struct json_object *now = n ? json_tokener_parse(text) : NULL;
    if (json_object_is_type(now, json_type_object)) return now;
    json_object_put(now);
    return NULL;
}

static struct json_object *read_facts(const char *folder, pid_t pid)
{
    char path[PATH_SIZE + 32], *text = NULL;
    size_t n;
    make_path(path, folder, pid, "json");
    if (read_all_path(path, MAX_FILE_BYTES, &text, &n, NULL) != LM_OK) return NULL;
    struct json_object *facts = json_tokener_parse(text);
    free(text);
    if (json_object_is_type(facts, json_type_object)) return facts;
    json_object_put(facts);
    return NULL;
}

/* A server by its status file; false: there is none any more. */
static bool read_entry(struct registry_entry *entry, const char *folder, const char *file_name)
{
    char path[PATH_SIZE + 32], *end;
    const long pid = strtol(file_name, &end, 10);
    if (pid <= 0 || strcmp(end, ".json")) return false;
    make_path(path, folder, (pid_t)pid, "json");
    if (!is_locked(path)) {
        unlink(path);
        make_path(path, folder, (pid_t)pid, "sock");
        unlink(path);
        return false;
    }
    struct json_object *facts = read_facts(folder, (pid_t)pid);
    if (!facts) return false;
    struct json_object *now = ask(folder, (pid_t)pid);
    if (now) {
        json_object_object_foreach(now, key, value)
        {
            json_object_object_add(facts, key, json_object_get(value));
        }
    }
    json_object_put(now);
    *entry = (struct registry_entry){(pid_t)pid, facts};
    return true;
}

static int by_pid(const void *a, const void *b)
{
    const pid_t left = ((const struct registry_entry *)a)->pid;
    const pid_t right = ((const struct registry_entry *)b)->pid;
    return (left > right) - (left < right);
}

enum lm_status registry_list(struct registry_entry **out, size_t *n, struct lm_error *err)
{
    char folder[PATH_SIZE];
    struct registry_entry *entries = NULL;
    size_t n_entry = 0;
    enum lm_status status = open_folder(folder, err);
    if (status != LM_OK) return status;
    DIR *stream = opendir(folder);
    if (!stream) return lm_fail_errno(err, "%s", folder);
    for (const struct dirent *file; (file = readdir(stream));) {
        struct registry_entry entry;
        if (!read_entry(&entry, folder, file->d_name)) continue;
        struct registry_entry *grown = realloc(entries, (n_entry + 1) * sizeof(*grown));
        if (!grown) {
            json_object_put(entry.facts);
            status = lm_fail(err, LM_E_NO_MEM, "no memory for a list of servers");
            break;
        }
        entries = grown;
        entries[n_entry++] = entry;
    }
    closedir(stream);
    if (status != LM_OK) {
        registry_free_list(entries, n_entry);
        return status;
    }
    if (n_entry) qsort(entries, n_entry, sizeof(*entries), by_pid);
    *out = entries;
    *n = n_entry;
    return LM_OK;
}

void registry_free_list(struct registry_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++)
        json_object_put(entries[i].facts);
    free(entries);
}
