/* Steps the wall clock of one process, as date(1) or NTP does to a machine: the monotonic clock
 * goes on, and files that are written after a step are dated by it. Loaded by LD_PRELOAD; the file
 * $CLOCK_STEPS holds the steps, and may grow at any time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct steps {
    int64_t count;
    struct {
        int64_t since;  /* by the true clock, nanoseconds */
        int64_t offset; /* what this clock is ahead from then on, seconds */
    } step[1023];
};

static const volatile struct steps *steps;

__attribute__((constructor)) static void open_steps(void)
{
    const char *path = getenv("CLOCK_STEPS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *pages = mmap(NULL, sizeof *steps, PROT_READ, MAP_SHARED, file, 0);
    steps = pages == MAP_FAILED ? NULL : pages;
    close(file);
}

static void shift(struct timespec *moment)
{
    int64_t at = moment->tv_sec * 1000000000LL + moment->tv_nsec;
    for (int64_t i = steps ? steps->count : 0; i-- > 0;)
        if (steps->step[i].since <= at) {
            moment->tv_sec += steps->step[i].offset;
            return;
        }
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(now);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}

int fstatat(int directory, const char *restrict path, struct stat *restrict found, int flags)
{
    int failed = syscall(SYS_newfstatat, directory, path, found, flags);
    if (!failed) {
        shift(&found->st_mtim);
        shift(&found->st_ctim);
    }
    return failed;
}

int stat(const char *restrict path, struct stat *restrict found)
{
    return fstatat(AT_FDCWD, path, found, 0);
}

int lstat(const char *restrict path, struct stat *restrict found)
{
    return fstatat(AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW);
}

int fstat(int file, struct stat *found)
{
    return fstatat(file, "", found, AT_EMPTY_PATH);
}

/* the names for programs built with _FILE_OFFSET_BITS=64; the structures are the same */
int fstatat64(int directory, const char *restrict path, struct stat64 *restrict found, int flags)
{
    return fstatat(directory, path, (struct stat *)found, flags);
}

int stat64(const char *restrict path, struct stat64 *restrict found)
{
    return fstatat(AT_FDCWD, path, (struct stat *)found, 0);
}

int lstat64(const char *restrict path, struct stat64 *restrict found)
{
    return fstatat(AT_FDCWD, path, (struct stat *)found, AT_SYMLINK_NOFOLLOW);
}

int fstat64(int file, struct stat64 *found)
{
    return fstatat(file, "", (struct stat *)found, AT_EMPTY_PATH);
}
