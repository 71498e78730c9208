/* Signal handlers that write to a pipe. */
#include "launch/terminal/interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH};
enum { N_SIGNAL = sizeof(signals) / sizeof(signals[0]) };

/* Handlers see nothing but static storage. Set before the handlers are installed. */
static int wake[2] = {-1, -1};
static void (*stop_hook)(void *context);
static void *stop_context;
static volatile sig_atomic_t flags[INTERRUPT_KIND_COUNT], end_signal;
static struct sigaction previous[N_SIGNAL];

static void handle(int number)
{
    const int saved_errno = errno;
    if (number == SIGWINCH) {
        flags[INTERRUPT_RESIZE] = 1;
    } else {
        flags[number == SIGINT ? INTERRUPT_STOP : INTERRUPT_END] = 1;
        if (number != SIGINT) end_signal = number;
        if (stop_hook) stop_hook(stop_context);
    }
    /* A full pipe is as good as one more byte in it. */
    const ssize_t written = write(wake[1], "", 1);
    (void)written;
    errno = saved_errno;
}

enum lm_status interrupt_begin(void (*on_stop)(void *context), void *context, struct lm_error *err)
{
    if (pipe2(wake, O_CLOEXEC | O_NONBLOCK)) return lm_fail_errno(err, "pipe for signals");
    stop_hook = on_stop;
    stop_context = context;
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    for (int i = 0; i < N_SIGNAL; i++)
        sigaction(signals[i], &action, &previous[i]);
    return LM_OK;
}

void interrupt_end(void)
{
    for (int i = 0; i < N_SIGNAL; i++)
        sigaction(signals[i], &previous[i], NULL);
    close(wake[0]);
    close(wake[1]);
}

int interrupt_fd(void)
{
    return wake[0];
}

bool interrupt_pending(enum interrupt_kind kind)
{
    return flags[kind];
}

bool interrupt_take(enum interrupt_kind kind)
{
    char bytes[64];
    while (read(wake[0], bytes, sizeof(bytes)) > 0)
        ;
    const bool came = flags[kind];
    flags[kind] = 0;
    return came;
}

int interrupt_end_signal(void)
{
    return (int)end_signal;
}
