/* Reads every /proc/N/stat once and counts the zombies; prints the seconds it took.
 * The yardstick for the agent's own scan: nothing reads the same files with less around it. */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void)
{
    double began = now();
    long zombies = 0;
    char path[300], line[2049];
    struct dirent *entry;
    DIR *proc = opendir("/proc");

    if (!proc)
        return 1;
    while ((entry = readdir(proc))) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        int file = open(path, O_RDONLY);
        if (file < 0)
            continue;
        ssize_t length = read(file, line, sizeof line - 1);
        close(file);
        if (length <= 0)
            continue;
        line[length] = 0;
        char *end = strrchr(line, ')');
        if (end && end[1] && end[2] == 'Z')
            zombies++;
    }
    closedir(proc);
    printf("%.6f\n", now() - began);
    return zombies < 0;
}
