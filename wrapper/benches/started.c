/* The command of the benchmarks: tells when it began (CLOCK_MONOTONIC, in nanoseconds), and the
 * CPU time (microseconds) and the peak memory (KiB) of its process until then: exec(2) keeps both.
 * Linked statically, so that it adds next to nothing of its own. */
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

int main(void)
{
    struct timespec now;
    struct rusage used;

    if (clock_gettime(CLOCK_MONOTONIC, &now) || getrusage(RUSAGE_SELF, &used))
        return 1;
    printf("%lld %lld %ld\n",
           now.tv_sec * 1000000000LL + now.tv_nsec,
           (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL
               + used.ru_utime.tv_usec + used.ru_stime.tv_usec,
           used.ru_maxrss);
    return 0;
}
