/*
 * breeder: a process that breeds zombies to order.
 *
 *     breeder SOCKET
 *
 * It takes one command a connection, answers with one line and closes:
 *
 *     breed COUNT COMM             COUNT zombies at once, named COMM
 *     rate MILLIHERTZ LIFE COMM    from now on, MILLIHERTZ a 1000 s, each
 *                                  reaped after LIFE ms (-1: never); 0 stops
 *     reap                         reap every zombie there is
 *     heed                         from now on, reap them all upon SIGCHLD
 *
 * COMM is in hex: at most 15 bytes of anything but NUL.  The children are made
 * by vfork and take their name with prctl, which is what makes 16,000 of them
 * a matter of a second.  As pid 1 of a container it ignores what a bad pid 1
 * ignores: it never reaps unless told to.  One that heeds SIGCHLD has zombies
 * left only from before: it has missed their signals, and waits for another.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PENDING 65536

struct doomed {
    pid_t pid;
    double due;
};

static struct doomed pending[PENDING];
static unsigned first, last;
static double interval, next_birth;
static long life = -1;
static char rate_comm[16];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void unhex(const char *hex, char comm[16])
{
    size_t n = 0;
    unsigned byte;
    while (n < 15 && sscanf(hex + 2 * n, "%2x", &byte) == 1)
        comm[n++] = (char)byte;
    comm[n] = '\0';
}

static pid_t birth(const char *comm)
{
    pid_t pid = vfork();
    if (pid == 0) {
        prctl(PR_SET_NAME, comm);
        _exit(0);
    }
    return pid;
}

static void reap_all(int number)
{
    int before = errno;
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    errno = before;
}

static void births_and_deaths(void)
{
    double t = now();
    while (interval > 0 && next_birth <= t) {
        pid_t pid = birth(rate_comm);
        if (pid > 0 && life >= 0 && (last + 1) % PENDING != first) {
            pending[last] = (struct doomed){pid, t + life};
            last = (last + 1) % PENDING;
        }
        next_birth += interval;
    }
    while (first != last && pending[first].due <= t) {
        waitpid(pending[first].pid, NULL, 0);
        first = (first + 1) % PENDING;
    }
}

static int pause_ms(void)
{
    double due = -1;
    if (interval > 0)
        due = next_birth;
    if (first != last && (due < 0 || pending[first].due < due))
        due = pending[first].due;
    if (due < 0)
        return -1;
    due -= now();
    return due < 0 ? 0 : (int)due + 1;
}

static void obey(int fd)
{
    char line[256], hex[64] = "", comm[16], answer[64];
    long count = 0, span = -1, done = 0;
    ssize_t n = read(fd, line, sizeof line - 1);
    if (n <= 0)
        return;
    line[n] = '\0';
    errno = 0;
    if (sscanf(line, "breed %ld %60s", &count, hex) == 2) {
        unhex(hex, comm);
        while (done < count && birth(comm) > 0)
            done++;
    } else if (sscanf(line, "rate %ld %ld %60s", &count, &span, hex) == 3) {
        unhex(hex, rate_comm);
        life = span;
        interval = count > 0 ? 1e6 / count : 0;
        next_birth = now();
        done = count;
    } else if (strncmp(line, "reap", 4) == 0) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            done++;
        first = last = 0;
        errno = 0;
    } else if (strncmp(line, "heed", 4) == 0) {
        signal(SIGCHLD, reap_all);
    } else {
        errno = EINVAL;
    }
    n = snprintf(answer, sizeof answer, "%ld %d\n", done, errno);
    if (write(fd, answer, n) != n)
        return;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) + 4 >= sizeof address.sun_path)
        return 2;
    sprintf(address.sun_path, "%s.new", argv[1]);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8) ||
        rename(address.sun_path, argv[1])) { /* whoever sees it may connect */
        perror(argv[1]);
        return 1;
    }
    for (;;) {
        struct pollfd ready = {.fd = listener, .events = POLLIN};
        int n = poll(&ready, 1, pause_ms());
        births_and_deaths();
        if (n <= 0)
            continue;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        obey(fd);
        close(fd);
    }
}
