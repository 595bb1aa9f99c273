/* SPDX-License-Identifier: MIT */
/*
 * The guest's only program: /init of the initramfs.
 *
 * Copies the kernel's own description of itself out (symbols, modules, zones),
 * disturbs the allocators by a seed, arms the plugin, and runs each workload in
 * a child of its own: pid 1's memory was placed while the kernel booted, a
 * forked child's lies where the policy of a running system puts it.
 *
 * Every measured window is preceded by one unmeasured pass of the same code.
 * Between a begin and an end mark there are only raw system calls and the loop.
 * Static and non-PIE: translated blocks must not be reused at another address.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "marks.h"

#define ITERATIONS	32
#define PAGE		4096UL
#define EXIT_PORT	0xf4	/* isa-debug-exit: QEMU exits with (v << 1) | 1 */
#define EXIT_GOOD	0x10
#define EXIT_BAD	0x11

#define MARK(code)						\
	asm volatile(".byte 0x0f, 0x1f, 0x84, 0x00\n\t"		\
		     ".long %c0"				\
		     :: "i"(MARK_MAGIC | (code)) : "memory")

/* Only a measured pass is marked; a constant, so this folds away. */
#define MARK_IF(measured, code)					\
	do {							\
		if (measured)					\
			MARK(code);				\
	} while (0)

#define always_inline inline __attribute__((always_inline))

static always_inline long sys6(long nr, long a, long b, long c, long d, long e,
			       long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long ret;

	asm volatile("syscall"
		     : "=a"(ret)
		     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}

static always_inline long sys3(long nr, long a, long b, long c)
{
	long ret;

	asm volatile("syscall"
		     : "=a"(ret)
		     : "a"(nr), "D"(a), "S"(b), "d"(c)
		     : "rcx", "r11", "memory");
	return ret;
}

static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vdprintf(1, format, args);
	va_end(args);
}

static void leave(int code)
{
	/* Let the console drain: it carries the reason of a failure. */
	sync();
	if (iopl(3) == 0)
		outb(code, EXIT_PORT);
	for (;;)
		pause();
}

static void fail(const char *what)
{
	say("numarep: %s: %s\n", what, strerror(errno));
	leave(EXIT_BAD);
}

/* -- Files that describe the guest ---------------------------------------- */

static void copy_out(const char *path, const char *name)
{
	struct mailbox *box = (struct mailbox *)MAILBOX_VA;
	size_t room = 24UL << 20, used = 0;
	char *text = mmap(NULL, room, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0 || text == MAP_FAILED)
		fail(path);
	while ((got = read(fd, text + used, room - used)) > 0)
		used += got;
	if (got < 0)
		fail(path);
	close(fd);
	box->va = (unsigned long)text;
	box->bytes = used;
	snprintf(box->name, sizeof(box->name), "%s", name);
	MARK(MARK_FILE);
	munmap(text, room);
}

/* /modules.list: one "name file" a line, in the order of their dependencies. */
static void load_modules(void)
{
	char name[64], file[128];
	FILE *list = fopen("/modules.list", "r");

	if (!list)
		fail("/modules.list");
	while (fscanf(list, "%63s %127s", name, file) == 2) {
		int fd = open(file, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			fail(file);
		close(fd);
	}
	fclose(list);
}

static void describe(void)
{
	copy_out("/proc/kallsyms", "kallsyms");
	copy_out("/proc/modules", "modules");
	copy_out("/proc/zoneinfo", "zoneinfo");
	copy_out("/proc/cmdline", "cmdline");
	copy_out("/proc/version", "version");
}

/* -- What differs between seeds ------------------------------------------- */

static unsigned long parse_seed(void)
{
	const char *text = getenv("numarep_seed");

	return text ? strtoul(text, NULL, 10) : 0;
}

/* Take 2048 pages, give back about half, chosen by the seed, keep some pipes. */
static void take_memory(unsigned long state)
{
	unsigned long pages = 2048;
	char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fds[2];

	if (area == MAP_FAILED)
		fail("disturb");
	madvise(area, pages * PAGE, MADV_NOHUGEPAGE);
	for (unsigned long i = 0; i < pages; i++)
		area[i * PAGE] = 1;
	for (unsigned long i = 0; i < pages; i++) {
		state = state * 6364136223846793005UL + 1442695040888963407UL;
		if (state >> 63)
			madvise(area + (state >> 33) % pages * PAGE, PAGE,
				MADV_DONTNEED);
	}
	for (unsigned long i = 0; i < 8 + (state >> 40) % 16; i++)
		if (pipe(fds))
			fail("pipe");
}

/*
 * A system that has run for a while has its free lists in another order.  The
 * memory is held by processes that sleep for ever, not by pid 1: the workloads
 * are forked from that one and would copy it.
 */
static void disturb(unsigned long seed)
{
	unsigned long state = seed * 0x9e3779b97f4a7c15UL + 1;
	unsigned long holders = 4 + (state >> 32) % 8;
	int ready[2];
	char byte;

	if (pipe(ready))
		fail("pipe");
	for (unsigned long i = 0; i < holders; i++) {
		pid_t pid = fork();

		if (!pid) {
			take_memory(state + i);
			if (write(ready[1], "r", 1) != 1)
				fail("pipe");
			for (;;)
				pause();
		}
		if (pid < 0 || read(ready[0], &byte, 1) != 1)
			fail("disturb");
	}
	close(ready[0]);
	close(ready[1]);
}

/* -- Workloads ------------------------------------------------------------- */

static void reap_all(void)
{
	while (waitpid(-1, NULL, 0) > 0)
		;
}

static always_inline void fork_1(int measured)
{
	long pid;

	MARK_IF(measured, MARK_BEGIN + 0);
	MARK_IF(measured, MARK_ITERATION);
	pid = sys3(SYS_fork, 0, 0, 0);
	if (!pid)
		sys3(SYS_exit_group, 0, 0, 0);
	MARK_IF(measured, MARK_END);
	if (pid < 0)
		fail("fork");
	reap_all();
}

static always_inline void fork_1024(int measured)
{
	long pid = 0;

	MARK_IF(measured, MARK_BEGIN + 1);
	for (int i = 0; i < ITERATIONS; i++) {
		MARK_IF(measured, MARK_ITERATION);
		pid = sys3(SYS_fork, 0, 0, 0);
		if (!pid)
			sys3(SYS_exit_group, 0, 0, 0);
	}
	MARK_IF(measured, MARK_END);
	if (pid < 0)
		fail("fork");
	reap_all();
}

static always_inline void map_loop(int measured, int begin, long flags)
{
	long va = 0;

	MARK_IF(measured, begin);
	for (int i = 0; i < ITERATIONS; i++) {
		MARK_IF(measured, MARK_ITERATION);
		va = sys6(SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
		sys3(SYS_munmap, va, PAGE, 0);
	}
	MARK_IF(measured, MARK_END);
	if (va < 0)
		fail("mmap");
}

static always_inline void mmap_munmap(int measured)
{
	map_loop(measured, MARK_BEGIN + 2, MAP_PRIVATE | MAP_ANONYMOUS);
}

static always_inline void mmap_locked(int measured)
{
	map_loop(measured, MARK_BEGIN + 3,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED);
}

static always_inline void open_close(int measured)
{
	long fd = 0;

	MARK_IF(measured, MARK_BEGIN + 4);
	for (int i = 0; i < ITERATIONS; i++) {
		MARK_IF(measured, MARK_ITERATION);
		fd = sys3(SYS_open, (long)"/dev/null", O_RDONLY, 0);
		sys3(SYS_close, fd, 0, 0);
	}
	MARK_IF(measured, MARK_END);
	if (fd < 0)
		fail("/dev/null");
}

static void on_measured_signal(int number)
{
	MARK(MARK_END);
	_exit(number != SIGUSR1);
}

static void on_first_signal(int number)
{
	_exit(number != SIGUSR1);
}

static pid_t start_receiver(void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };
	pid_t pid = fork();

	if (pid)
		return pid;
	sigaction(SIGUSR1, &action, NULL);
	for (;;)
		pause();
}

/* Both receivers sleep in pause() before the first signal is sent. */
static void run_kill(void)
{
	struct timespec pause_time = { .tv_nsec = 20 * 1000 * 1000 };
	long first = start_receiver(on_first_signal);
	long second = start_receiver(on_measured_signal);

	nanosleep(&pause_time, NULL);
	sys3(SYS_kill, first, SIGUSR1, 0);
	sys6(SYS_wait4, first, 0, 0, 0, 0, 0);
	MARK(MARK_BEGIN + 5);
	MARK(MARK_ITERATION);
	sys3(SYS_kill, second, SIGUSR1, 0);
	sys6(SYS_wait4, second, 0, 0, 0, 0, 0);
}

static always_inline void mount_proc(int measured, const char *folder)
{
	long ret;

	MARK_IF(measured, MARK_BEGIN + 6);
	MARK_IF(measured, MARK_ITERATION);
	ret = sys6(SYS_mount, (long)"proc", (long)folder, (long)"proc", 0, 0, 0);
	MARK_IF(measured, MARK_END);
	if (ret)
		fail("mount proc");
}

static void run_mount_proc(void)
{
	char first[] = "/tmp/mountXXXXXX", second[] = "/tmp/mountXXXXXX";

	if (!mkdtemp(first) || !mkdtemp(second))
		fail("mkdtemp");
	mount_proc(0, first);
	mount_proc(1, second);
	umount2(first, 0);
	umount2(second, 0);
}

static void write_file(const char *path)
{
	static char content[PAGE];
	int fd = open(path, O_CREAT | O_WRONLY, 0644);

	if (fd < 0 || write(fd, content, sizeof(content)) != sizeof(content))
		fail(path);
	close(fd);
}

static void mount_overlay(void)
{
	if (mkdir("/tmp/lower", 0755) || mkdir("/tmp/upper", 0755) ||
	    mkdir("/tmp/work", 0755) || mkdir("/tmp/merged", 0755))
		fail("mkdir");
	write_file("/tmp/lower/file");
	if (mount("overlay", "/tmp/merged", "overlay", 0,
		  "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"))
		fail("mount overlay");
}

/* Read a file of the lower layer; make, write, stat and remove an upper one. */
static always_inline void overlayfs(int measured)
{
	static char buffer[256];
	static struct stat status;
	long fd, bad = 0;

	MARK_IF(measured, MARK_BEGIN + 7);
	for (int i = 0; i < ITERATIONS; i++) {
		MARK_IF(measured, MARK_ITERATION);
		fd = sys3(SYS_open, (long)"/tmp/merged/file", O_RDONLY, 0);
		bad |= sys3(SYS_read, fd, (long)buffer, sizeof(buffer));
		sys3(SYS_close, fd, 0, 0);
		fd = sys3(SYS_open, (long)"/tmp/merged/new", O_CREAT | O_RDWR, 0644);
		bad |= sys3(SYS_write, fd, (long)buffer, sizeof(buffer));
		sys3(SYS_close, fd, 0, 0);
		bad |= sys3(SYS_stat, (long)"/tmp/merged/new", (long)&status, 0);
		bad |= sys3(SYS_unlink, (long)"/tmp/merged/new", 0, 0);
	}
	MARK_IF(measured, MARK_END);
	if (bad < 0)
		fail("overlay");
}

/*
 * Two copies of the workload's code, so that neither carries a test of
 * "measured" into the window.
 */
#define TWO_PASSES(workload)						\
	static void __attribute__((noinline)) run_##workload(void)	\
	{								\
		workload(0);						\
		workload(1);						\
	}

TWO_PASSES(fork_1)
TWO_PASSES(fork_1024)
TWO_PASSES(mmap_munmap)
TWO_PASSES(mmap_locked)
TWO_PASSES(open_close)
TWO_PASSES(overlayfs)

static void run_overlay(void)
{
	mount_overlay();
	run_overlayfs();
}

static const struct {
	const char *name;
	void (*run)(void);
} workloads[] = {
	/* The position is the number in MARK_BEGIN. */
	{ "fork_1", run_fork_1 },
	{ "fork_1024", run_fork_1024 },
	{ "mmap_munmap", run_mmap_munmap },
	{ "mmap_locked", run_mmap_locked },
	{ "open_close", run_open_close },
	{ "kill", run_kill },
	{ "mount_proc", run_mount_proc },
	{ "overlayfs", run_overlay },
};

/* With no list, or with its name in the comma-separated list. */
static int is_wanted(const char *name)
{
	const char *list = getenv("numarep_workloads");
	size_t length = strlen(name);

	for (const char *at = list; at && *at; at++) {
		if ((at == list || at[-1] == ',') && !strncmp(at, name, length) &&
		    (!at[length] || at[length] == ','))
			return 1;
	}
	return !list;
}

static void run_in_child(void (*run)(void), const char *name)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		run();
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status) {
		say("numarep: workload %s ended with status %x\n", name, status);
		leave(EXIT_BAD);
	}
	say("numarep: workload %s done\n", name);
}

/*
 * A dynamically linked benchmark has its libraries where mmap() places new
 * areas, so the tables down to the PTE page are there; a static one has nothing.
 * Inherited by every workload.
 */
static void map_like_libraries(void)
{
	char *area = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		fail("mmap");
	for (unsigned long i = 0; i < 16; i++)
		area[i * PAGE] = 1;
}

static void mount_basics(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) ||
	    mount("sys", "/sys", "sysfs", 0, NULL) ||
	    mount("dev", "/dev", "devtmpfs", 0, NULL) ||
	    mount("tmp", "/tmp", "tmpfs", 0, NULL))
		fail("mount");
}

int main(void)
{
	/* Files left open by the kernel would differ between configurations. */
	int console;

	mount_basics();
	console = open("/dev/console", O_RDWR);
	for (int fd = 0; fd < 3 && console >= 0; fd++)
		dup2(console, fd);
	if (mmap((void *)MAILBOX_VA, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		fail("mailbox");
	say("numarep: guest started\n");
	load_modules();
	describe();
	disturb(parse_seed());
	map_like_libraries();
	say("numarep: armed\n");
	MARK(MARK_ARM);
	for (size_t i = 0; i < sizeof(workloads) / sizeof(*workloads); i++)
		if (is_wanted(workloads[i].name))
			run_in_child(workloads[i].run, workloads[i].name);
	MARK(MARK_DONE);
	say("numarep: done\n");
	leave(EXIT_GOOD);
	return 0;
}
