/* A wall clock that tests set: loaded into a process by LD_PRELOAD, it adds the seconds in a file to what the kernel says.
 *
 * Monotonic clocks, and so every wait, stay the machine's. libfaketime 0.9.10 is no choice: under it clock_nanosleep refuses a
 * monotonic time to wait until, which is how Python sleeps since 3.11.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char path[4096];

__attribute__((constructor)) static void remember_path(void)
{
    const char *found = getenv("TETHER_TEST_CLOCK");

    if (found != NULL && strlen(found) < sizeof path)
        strcpy(path, found);
}

static long long shift_s(void)
{
    char text[32];
    ssize_t length;
    int file;

    if (path[0] == '\0' || (file = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return 0;
    length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    return atoll(text);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, id, now);

    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += shift_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;

    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found) != 0)
        return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec found;

    if (clock_gettime(CLOCK_REALTIME, &found) != 0)
        return (time_t)-1;
    if (where != NULL)
        *where = found.tv_sec;
    return found.tv_sec;
}
