/* The table that a signal handler looks at, hence at file scope, and guarded by a lock that spins:
 * nothing that is done under it touches a guarded mapping, and the handler takes it for an access
 * only, so it never waits for its own thread. */
#include "proto/base/map_guard.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/base/file_identity.h"

struct entry {
    const void *owner; /* NULL: free */
    uintptr_t begin;
    uint64_t n_bytes;
    int fd;
    const char *path;
    struct file_identity identity;
    uint64_t lost_begin, lost_end; /* zeros are in between; equal: none */
};

static atomic_flag lock = ATOMIC_FLAG_INIT;
static struct entry table[MAP_GUARD_MAX]; /* under lock, as the next three */
static size_t n_entry;                    /* used so far */
static size_t n_guarded;
static struct sigaction before;

static void take_lock(void)
{
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        ;
}

static void give_lock(void)
{
    atomic_flag_clear_explicit(&lock, memory_order_release);
}

static struct entry *find_locked(uintptr_t address)
{
    for (size_t i = 0; i < n_entry; i++)
        if (table[i].owner && address - table[i].begin < table[i].n_bytes) return &table[i];
    return NULL;
}

/* Puts zeros where the page of an address was. */
static bool lose_page_locked(uintptr_t address)
{
    const uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t page = address / page_bytes * page_bytes;
    struct entry *entry = find_locked(address);
    if (!entry || mmap((void *)page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                       -1, 0) == MAP_FAILED)
        return false;
    const uint64_t offset = page - entry->begin;
    const bool first = entry->lost_begin == entry->lost_end;
    if (first || offset < entry->lost_begin) entry->lost_begin = offset;
    if (first || offset + page_bytes > entry->lost_end) entry->lost_end = offset + page_bytes;
    return true;
}

static void handle(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (info->si_code <= 0) { /* sent by kill, perhaps while this very thread holds the lock */
        sigaction(number, &before, NULL);
        raise(number);
        return;
    }
    take_lock();
    const bool lost = lose_page_locked((uintptr_t)info->si_addr);
    if (!lost) sigaction(number, &before, NULL); /* not ours: the same access ends as without us */
    give_lock();
}

void map_guard_add(const void *owner, const void *data, uint64_t n_bytes, int fd, const char *path)
{
    const struct file_identity identity = file_identity_of(fd);
    take_lock();
    size_t i = 0;
    while (i < n_entry && table[i].owner)
        i++;
    if (i < MAP_GUARD_MAX) {
        table[i] = (struct entry){.owner = owner,
                                  .begin = (uintptr_t)data,
                                  .n_bytes = n_bytes,
                                  .fd = fd,
                                  .path = path,
                                  .identity = identity};
        if (i == n_entry) n_entry++;
        struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
        sigemptyset(&action.sa_mask);
        if (!n_guarded++) sigaction(SIGBUS, &action, &before);
    }
    give_lock();
}

void map_guard_remove(const void *owner)
{
    take_lock();
    for (size_t i = 0; i < n_entry; i++) {
        if (table[i].owner != owner) continue;
        table[i].owner = NULL;
        if (!--n_guarded) sigaction(SIGBUS, &before, NULL);
    }
    give_lock();
}

/* Maps what was lost of an entry again. What cannot be stays lost: the next check says so again. */
static void map_again_locked(struct entry *entry)
{
    void *const at = (void *)(entry->begin + entry->lost_begin);
    if (mmap(at, entry->lost_end - entry->lost_begin, PROT_READ, MAP_PRIVATE | MAP_FIXED, entry->fd,
             (off_t)entry->lost_begin) != MAP_FAILED)
        entry->lost_begin = entry->lost_end = 0;
}

bool map_guard_check(const void *owner, struct map_loss *out)
{
    bool any = false;
    take_lock();
    for (size_t i = 0; i < n_entry; i++) {
        struct entry *entry = &table[i];
        if (entry->owner != owner) continue;
        const bool lost = entry->lost_begin != entry->lost_end;
        const bool replaced = !file_identity_holds(&entry->identity, entry->fd);
        if (!lost && !replaced) continue;
        any = true;
        *out = (struct map_loss){entry->path, entry->fd, !lost, entry->lost_begin};
        if (lost) map_again_locked(entry);
    }
    give_lock();
    return any;
}
