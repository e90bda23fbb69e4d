/* A Linux program without libc that tells how fast a CPU is. Lines on standard output:
 *
 *   (as process 1)               boot NS TSC 0          then runs /bin/sh /speed.sh
 *   speed int|mem|branch|call N  NAME NS TSC COUNT      N iterations of a loop
 *   speed run NAME PROGRAM...    NAME NS TSC 0          a program to its end
 *   speed now NAME               NAME NS TSC 0          the clocks themselves
 *
 * NS is time by CLOCK_MONOTONIC, TSC by RDTSC, COUNT the exact number of instructions of the loop.
 * `boot` and `now` tell points in time, the others how long it took. */

typedef unsigned long u64;

#define SYS_WRITE 1
#define SYS_GETPID 39
#define SYS_FORK 57
#define SYS_EXECVE 59
#define SYS_EXIT 60
#define SYS_WAIT4 61
#define SYS_CLOCK_GETTIME 228

#define CLOCK_MONOTONIC 1
#define MEM_WORDS 8192ul

struct moment {
	u64 ns, tsc;
};

struct time {
	u64 seconds, nanoseconds;
};

static u64 words[MEM_WORDS];

static u64 call4(u64 number, u64 a, u64 b, u64 c, u64 d)
{
	register u64 fourth __asm__("r10") = d;
	u64 result;
	__asm__ volatile("syscall" : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
			 : "rcx", "r11", "memory");
	return result;
}

static struct moment now(void)
{
	struct time time;
	unsigned low, high;
	call4(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, (u64)&time, 0, 0);
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	struct moment moment = { time.seconds * 1000000000ul + time.nanoseconds,
				 (u64)high << 32 | low };
	return moment;
}

static char *add_text(char *at, const char *text)
{
	while (*text)
		*at++ = *text++;
	return at;
}

static char *add_number(char *at, u64 value)
{
	char digits[20];
	int count = 0;
	do {
		digits[count++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	*at++ = ' ';
	while (count)
		*at++ = digits[--count];
	return at;
}

/* One write, so that no other output comes in between. */
static void tell(const char *name, struct moment start, struct moment end, u64 count)
{
	char line[160];
	char *at = add_text(line, name);
	at = add_number(at, end.ns - start.ns);
	at = add_number(at, end.tsc - start.tsc);
	at = add_number(at, count);
	*at++ = '\n';
	call4(SYS_WRITE, 1, (u64)line, (u64)(at - line), 0);
}

static int same(const char *left, const char *right)
{
	while (*left && *left == *right)
		left++, right++;
	return *left == *right;
}

static u64 number(const char *text)
{
	u64 value = 0;
	while (*text >= '0' && *text <= '9')
		value = value * 10 + (u64)(*text++ - '0');
	return value;
}

/* Each loop returns how many instructions one iteration has. */

static u64 loop_int(u64 rounds)
{
	__asm__ volatile("mov $0x1234567, %%eax\n"
			 "1: add %%rcx, %%rax\n"
			 "lea 7(%%rax,%%rcx,2), %%rdx\n"
			 "xor %%rdx, %%rax\n"
			 "shl $3, %%rdx\n"
			 "sub %%rdx, %%rax\n"
			 "mov %%rax, %%rsi\n"
			 "shr $5, %%rsi\n"
			 "or $1, %%rsi\n"
			 "and $0xffffff, %%esi\n"
			 "add %%rsi, %%rax\n"
			 "dec %%rcx\n"
			 "jnz 1b\n"
			 : "+c"(rounds) : : "rax", "rdx", "rsi", "cc");
	return 12;
}

/* Loads, stores and a read-modify-write over 64 KiB. */
static u64 loop_mem(u64 rounds)
{
	__asm__ volatile("xor %%edx, %%edx\n"
			 "1: mov (%1,%%rdx,8), %%rax\n"
			 "add %%rcx, %%rax\n"
			 "mov %%rax, (%1,%%rdx,8)\n"
			 "mov 64(%1), %%esi\n"
			 "add %%esi, 128(%1)\n"
			 "movzbl 3(%1,%%rdx,8), %%edi\n"
			 "add $9, %%edx\n"
			 "and $8191, %%edx\n"
			 "dec %%rcx\n"
			 "jnz 1b\n"
			 : "+c"(rounds) : "r"(words) : "rax", "rdx", "rsi", "rdi", "cc", "memory");
	return 10;
}

/* Two branches that follow pseudo-random bits; both ways are equally long. */
static u64 loop_branch(u64 rounds)
{
	__asm__ volatile("mov $0x9e3779b9, %%eax\n"
			 "1: imul $1103515245, %%eax, %%eax\n"
			 "add $12345, %%eax\n"
			 "test $0x10000, %%eax\n"
			 "jz 2f\n"
			 "inc %%rdx\n"
			 "jmp 3f\n"
			 "2: inc %%rsi\n"
			 "nop\n"
			 "3: cmp $0, %%eax\n"
			 "jl 4f\n"
			 "add %%rax, %%rdx\n"
			 "jmp 5f\n"
			 "4: sub %%rax, %%rsi\n"
			 "nop\n"
			 "5: dec %%rcx\n"
			 "jnz 1b\n"
			 : "+c"(rounds) : : "rax", "rdx", "rsi", "cc");
	return 12;
}

/* Two levels of calls, one of them through a register. */
static u64 loop_call(u64 rounds)
{
	__asm__ volatile("lea 3f(%%rip), %%rdx\n"
			 "jmp 1f\n"
			 "2: push %%rbx\n"
			 "mov %%rcx, %%rbx\n"
			 "call *%%rdx\n"
			 "add %%rbx, %%rax\n"
			 "pop %%rbx\n"
			 "ret\n"
			 "3: lea 1(%%rcx), %%rax\n"
			 "ret\n"
			 "1: call 2b\n"
			 "dec %%rcx\n"
			 "jnz 1b\n"
			 : "+c"(rounds) : : "rax", "rdx", "cc", "memory");
	return 11;
}

static const struct {
	const char *name;
	u64 (*loop)(u64 rounds);
} loops[] = {
	{ "int", loop_int }, { "mem", loop_mem }, { "branch", loop_branch }, { "call", loop_call },
};

static void run(char **words_of, char **environment)
{
	struct moment start = now();
	u64 child = call4(SYS_FORK, 0, 0, 0, 0);
	if (!child) {
		call4(SYS_EXECVE, (u64)words_of[1], (u64)(words_of + 1), (u64)environment, 0);
		call4(SYS_EXIT, 127, 0, 0, 0);
	}
	unsigned status = 1;
	call4(SYS_WAIT4, child, (u64)&status, 0, 0);
	struct moment end = now();
	if (status)
		end = start;
	tell(words_of[0], start, end, 0);
}

static void program(int count, char **words_of, char **environment)
{
	struct moment zero = { 0, 0 };
	struct moment start = now();
	if (call4(SYS_GETPID, 0, 0, 0, 0) == 1) {
		char *shell[] = { "/bin/sh", "/speed.sh", 0 };
		tell("boot", zero, start, 0);
		call4(SYS_EXECVE, (u64)shell[0], (u64)shell, (u64)environment, 0);
	} else if (count > 3 && same(words_of[1], "run")) {
		run(words_of + 2, environment);
	} else if (count == 3 && same(words_of[1], "now")) {
		tell(words_of[2], zero, start, 0);
	} else if (count == 3) {
		u64 rounds = number(words_of[2]);
		for (u64 i = 0; i < sizeof(loops) / sizeof(*loops); i++) {
			if (rounds && same(words_of[1], loops[i].name)) {
				start = now();
				u64 each = loops[i].loop(rounds);
				tell(words_of[1], start, now(), rounds * each);
			}
		}
	}
}

/* The stack holds the number of words, the words, a zero, the environment, a zero. */
__attribute__((used)) void begin(u64 *stack)
{
	int count = (int)stack[0];
	program(count, (char **)(stack + 1), (char **)(stack + count + 2));
	call4(SYS_EXIT, 0, 0, 0, 0);
}

__asm__(".globl _start\n"
	"_start: mov %rsp, %rdi\n"
	"and $-16, %rsp\n"
	"call begin\n");
