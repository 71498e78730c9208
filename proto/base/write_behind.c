/* Windows of sync_file_range, then fadvise. */
#include "proto/base/write_behind.h"

#include <fcntl.h>

/* 64 MiB in flight keep a fast drive busy; a window is a few milliseconds of it. */
enum { WINDOW_BYTES = 16 << 20, WINDOWS_AHEAD = 4 };

void write_behind_advance(struct write_behind *behind, int fd, uint64_t n_written)
{
    const unsigned finish =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    const uint64_t lag = (uint64_t)WINDOW_BYTES * WINDOWS_AHEAD;
    while (n_written - behind->begun >= WINDOW_BYTES) {
        sync_file_range(fd, (off_t)behind->begun, WINDOW_BYTES, SYNC_FILE_RANGE_WRITE);
        if (behind->begun >= lag) {
            const off_t oldest = (off_t)(behind->begun - lag);
            sync_file_range(fd, oldest, WINDOW_BYTES, finish);
            posix_fadvise(fd, oldest, WINDOW_BYTES, POSIX_FADV_DONTNEED);
        }
        behind->begun += WINDOW_BYTES;
    }
}

void write_behind_end(int fd)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}
