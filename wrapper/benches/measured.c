/* measured COMMAND [ARG...]: runs a command to its end and appends what it took to standard output:
 * wall time (nanoseconds), CPU time (microseconds) and peak memory (KiB). The command's exit status
 * is our own. Linked statically: a child's peak begins with the memory of the process that it was
 * forked from. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
    struct rusage used;
    int status;
    long long began = now();
    pid_t child;

    if (argc < 2 || (child = fork()) < 0)
        return 125;
    if (child == 0) {
        execv(argv[1], argv + 1);
        _exit(127);
    }
    if (wait4(child, &status, 0, &used) < 0)
        return 125;
    printf("%lld %lld %ld\n",
           now() - began,
           (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL
               + used.ru_utime.tv_usec + used.ru_stime.tv_usec,
           used.ru_maxrss);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
