/* Loaded before libc into a process under test. A shared page says what to do; counters in it say what was done.
 * Built by shim.py; layout of the page as there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct page {
  volatile int64_t fsync_delay_us;
  volatile int64_t clock_offset_us;
  volatile int64_t is_full;
  volatile int64_t num_slow_fsyncs;
  volatile int64_t num_refused_writes;
  volatile int64_t num_shifted_reads;
  char reserved[464];
  char prefix[1024];
};

static struct page *control;

__attribute__((constructor)) static void map_control(void) {
  const char *path = getenv("ASYMPO_CHAOS_CONTROL");
  if (!path) return;
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) control = mapped;
}

static void delay(void) {
  int64_t micros = control ? control->fsync_delay_us : 0;
  if (micros <= 0) return;
  struct timespec left = {micros / 1000000, (micros % 1000000) * 1000};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
  __atomic_add_fetch(&control->num_slow_fsyncs, 1, __ATOMIC_RELAXED);
}

int fsync(int file) {
  delay();
  return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
  delay();
  return (int)syscall(SYS_fdatasync, file);
}

static int is_refused(int file) {
  if (!control || !control->is_full) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  size_t size = strnlen(control->prefix, sizeof control->prefix);
  if (size == 0 || strncmp(path, control->prefix, size) != 0) return 0;
  if (path[size] != 0 && path[size] != '/') return 0; /* a neighbour whose name only begins like it */
  __atomic_add_fetch(&control->num_refused_writes, 1, __ATOMIC_RELAXED);
  errno = ENOSPC;
  return 1;
}

ssize_t write(int file, const void *data, size_t size) {
  return is_refused(file) ? -1 : syscall(SYS_write, file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
  return is_refused(file) ? -1 : syscall(SYS_pwrite64, file, data, size, offset);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
  return is_refused(file) ? -1 : syscall(SYS_pwrite64, file, data, size, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  return is_refused(file) ? -1 : syscall(SYS_writev, file, parts, count);
}

static int64_t offset_us(void) {
  int64_t micros = control ? control->clock_offset_us : 0;
  if (micros) __atomic_add_fetch(&control->num_shifted_reads, 1, __ATOMIC_RELAXED);
  return micros;
}

static int (*real_clock_gettime)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real_clock_gettime ? real_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t micros = offset_us();
    if (micros) {
      int64_t nanos = now->tv_nsec + (micros % 1000000) * 1000;
      now->tv_sec += micros / 1000000;
      if (nanos < 0) { nanos += 1000000000; now->tv_sec -= 1; }
      if (nanos >= 1000000000) { nanos -= 1000000000; now->tv_sec += 1; }
      now->tv_nsec = nanos;
    }
  }
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *where) {
  struct timespec exact;
  if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return (time_t)-1;
  if (where) *where = exact.tv_sec;
  return exact.tv_sec;
}
