/* Any bytes on a connection to `lean serve`: every answer is one that the contract knows, none is
 * an internal error, and each connection comes to its end.
 *
 * The command itself runs in a thread, with libmicrohttpd and a tiny model. The first byte of the
 * input says how the others are sent, so that inputs can be written by hand: '@' as they are,
 * 'H' with the Content-Length of what follows the first empty line added; 'A' to 'G' and 'I' to
 * 'O' likewise, but in pieces; 'P' to '_' likewise, but the client then goes away at once. */
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launch/command.h"
#include "proto/base/byte_buffer.h"
#include "proto/base/log.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ANSWER_MS = 8, END_MS = 10000, LENGTH_FLAG = 8, LEAVE_FLAG = 16 };

static const size_t piece_bytes[] = {SIZE_MAX, 1, 2, 7, 31, 64, 200, 500};

static struct {
    pthread_t thread;
    int ready_fd, port;
    char folder[64]; /* of the registry's entry */
} server;

static void check(bool good, const char *what)
{
    if (good) return;
    fprintf(stderr, "fuzz_http: %s\n", what);
    abort();
}

/* ---- the server ---- */

static void *run_server(void *context)
{
    char model[4096], fd[16];
    const char *source = getenv("LEAN_SOURCE_DIR");
    snprintf(model, sizeof(model), "%s/tests/data/golden/models/qwen35moe-s-q8_0.gguf",
             source ? source : ".");
    snprintf(fd, sizeof(fd), "%d", server.ready_fd);
    char *argv[] = {
        "--listen",   "127.0.0.1:0", "--ready-fd",     fd,          "--ctx",       "64",
        "--parallel", "2",           "--max-body",     "4096",      "--max-queue", "4",
        "--threads",  "1",           "--log-file",     "/dev/null", "--alias",     "default",
        "--quiet",    "--no-warmup", "--body-timeout", "2s",        model};
    struct options *options = NULL;
    const struct command *command;
    struct lm_error err;
    (void)context;
    enum lm_status status = command_find(&command, "serve", &err);
    if (status == LM_OK)
        status =
            options_parse(&options, command->options, sizeof(argv) / sizeof(argv[0]), argv, &err);
    if (status == LM_OK) status = command->run(options, &err);
    options_destroy(options);
    if (status != LM_OK) fprintf(stderr, "lean serve: %s\n", err.message);
    check(status == LM_OK, "the server ends with an error");
    return NULL;
}

static void stop_server(void)
{
    pthread_kill(server.thread, SIGTERM);
    pthread_join(server.thread, NULL);
    rmdir(strcat(server.folder, "/lean"));
    *strrchr(server.folder, '/') = '\0';
    rmdir(server.folder);
}

static void start_server(void)
{
    int fds[2];
    char line[128] = "";
    strcpy(server.folder, "/tmp/fuzz_http-XXXXXX");
    check(mkdtemp(server.folder) && !setenv("XDG_RUNTIME_DIR", server.folder, 1) && !pipe(fds),
          "no folder");
    log_configure(&(struct log_config){.level = LOG_ERROR, .progress = LOG_PROGRESS_NONE});
    server.ready_fd = fds[1];
    check(!pthread_create(&server.thread, NULL, run_server, NULL), "no thread");
    check(read(fds[0], line, sizeof(line) - 1) > 0 &&
              sscanf(line, "ready http://127.0.0.1:%d", &server.port) == 1,
          "the server does not begin");
    atexit(stop_server);
}

/* ---- one connection ---- */

static int connect_to_server(void)
{
    const struct sockaddr_in name = {.sin_family = AF_INET,
                                     .sin_port = htons((uint16_t)server.port),
                                     .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    /* a reset at the end, so that no thousands of sockets wait for their ports to be free */
    const struct linger reset = {.l_onoff = 1};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    check(!connect(fd, (const struct sockaddr *)&name, sizeof(name)), "no connection");
    return fd;
}

/* False: the server has closed its end before it took everything. */
static bool send_in_pieces(int fd, const char *bytes, size_t n, size_t n_piece)
{
    while (n) {
        const ssize_t sent = send(fd, bytes, n < n_piece ? n : n_piece, MSG_NOSIGNAL);
        if (sent < 0) return false;
        bytes += sent;
        n -= (size_t)sent;
    }
    return true;
}

static bool has_data(int fd, int ms)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, ms) > 0;
}

/* Until the server closes. */
static void read_to_end(int fd, struct byte_buffer *answer)
{
    char block[4096];
    for (ssize_t n = 1; n > 0;) {
        check(has_data(fd, END_MS), "the connection does not end");
        n = recv(fd, block, sizeof(block), 0);
        if (n > 0) byte_buffer_put(answer, block, (size_t)n);
    }
}

static void check_answer(const struct byte_buffer *answer)
{
    static const int known[] = {100, 200, 204, 400, 401, 403, 404, 405, 408, 413,
                                414, 417, 429, 431, 501, 503, 504, 505, 529};
    int status = 0;
    bool found = false;
    if (!answer->n) return;
    check(!strncmp(answer->data, "HTTP/1.", 7) && answer->n > 12, "no answer in HTTP");
    sscanf(answer->data + 8, "%3d", &status);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        found |= status == known[i];
    if (!found) fprintf(stderr, "%s\n", answer->data);
    check(found, "a status that the contract does not have");
}

/* The input with the length of its body among its headers. */
static void add_length(const char *bytes, size_t n, struct byte_buffer *out)
{
    const char *end = memmem(bytes, n, "\r\n\r\n", 4);
    const size_t n_head = end ? (size_t)(end - bytes) + 2 : n;
    byte_buffer_put(out, bytes, n_head);
    if (end) byte_buffer_printf(out, "Content-Length: %zu\r\n", n - n_head - 2);
    byte_buffer_put(out, bytes + n_head, n - n_head);
    check(!out->failed, "no memory");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct byte_buffer request = {0}, answer = {0};
    if (!size) return 0;
    if (!server.port) start_server();
    const unsigned how = data[0];
    if (how & LENGTH_FLAG)
        add_length((const char *)data + 1, size - 1, &request);
    else
        byte_buffer_put(&request, (const char *)data + 1, size - 1);
    const int fd = connect_to_server();
    const bool sent = send_in_pieces(fd, request.data, request.n, piece_bytes[how % 8]);
    if (!(how & LEAVE_FLAG)) {
        if (sent) has_data(fd, ANSWER_MS); /* a client that leaves gets no answer */
        shutdown(fd, SHUT_WR);
        read_to_end(fd, &answer);
        check_answer(&answer);
    }
    close(fd);
    byte_buffer_free(&request);
    byte_buffer_free(&answer);
    return 0;
}
