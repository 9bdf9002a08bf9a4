/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loops that tools/bench times. A byte to port 0x80 marks the beginning of each round and the
 * end of the last, so that whoever runs the guest can time rounds by his own clock; nobody has to
 * listen there. A loop with a count of 0 is left out.
 */
#include "events.h"

#define MARK_END 0xff

#define TABLE_WORDS 8192
#define COPY_WORDS (256 * KIB / sizeof(u64))
#define SPACES 4
#define SPACE_PAGES 32
#define USER_ABSENT (FIRST_GVA + MIB)
#define LOAD_LENGTH 2

/* What a page of the region holds; the fields lie in different cache lines. */
struct page {
	u64 touched, pad[7];
	struct page *next;
	u64 rest[503];
};

extern u8 user_faults[];

static u64 size = DEFAULT_size, rounds = DEFAULT_rounds;
static u64 nr_mixed = DEFAULT_mixed, nr_copy = DEFAULT_copy, nr_touch = DEFAULT_touch;
static u64 nr_chase = DEFAULT_chase, nr_switches = DEFAULT_switches, nr_faults = DEFAULT_faults;
static u64 nr_ipis = DEFAULT_ipis, nr_timers = DEFAULT_timers, nr_syscalls = DEFAULT_syscalls;
static u64 nr_inputs = DEFAULT_inputs, nr_cpuids = DEFAULT_cpuids;

static struct page *region;
static u64 nr_pages, checksum, faults_taken;
static u64 spaces[SPACES];

static void mark(u8 code)
{
	outb(code, MARK_PORT);
}

/* `loop` prepares nothing: what it needs is there, so that all its rounds do the same. */
static void run(u8 code, u64 count, void (*loop)(u64 count))
{
	if (!count)
		return;
	for (u64 round = 0; round < rounds; round++) {
		mark(code);
		loop(count);
	}
	mark(MARK_END);
}

static __attribute__((noinline)) u64 collatz_step(u64 x)
{
	return x & 1 ? x * 3 + 1 : x >> 1;
}

static void mixed_loop(u64 count)
{
	static u64 table[TABLE_WORDS];
	u64 x = 27;

	for (u64 i = 0; i < count; i++) {
		u64 *word = &table[(x ^ i * 37) % TABLE_WORDS];

		x = collatz_step(x) + *word;
		if (x > 1UL << 40)
			x >>= 20;
		*word = x + i;
	}
	checksum = checksum_add(checksum, x);
}

static void copy_loop(u64 count)
{
	static u64 from[COPY_WORDS], to[COPY_WORDS];

	for (u64 pass = 0; pass < count; pass++) {
		from[pass % COPY_WORDS]++;
		for (u64 i = 0; i < COPY_WORDS; i++) {
			to[i] = from[i];
			/* Keeps the compiler from calling memcpy. */
			__asm__ volatile("" : : : "memory");
		}
	}
	checksum = checksum_add(checksum, to[0]);
}

static void touch_loop(u64 count)
{
	for (u64 pass = 0; pass < count; pass++)
		for (u64 i = 0; i < nr_pages; i++)
			region[i].touched++;
}

static void chase_loop(u64 count)
{
	struct page *volatile *next = (struct page *volatile *)&region[0].next;

	for (u64 i = 0; i < count; i++)
		next = (struct page *volatile *)&(*next)->next;
	checksum = checksum_add(checksum, (u64)next - (u64)region);
}

static void switch_loop(u64 count)
{
	for (u64 i = 0; i < count; i++) {
		write_cr3(spaces[i % SPACES]);
		for (u64 page = 0; page < SPACE_PAGES; page++)
			++*(volatile u64 *)(FIRST_GVA + page * PAGE_SIZE);
	}
}

/* At CPL 3: RDI loads, each of which faults and is skipped by the handler. */
__asm__(".pushsection .user, \"ax\"\n"
	".globl user_faults\n"
	"user_faults:\n"
	"	movabs $0x8000100000, %rsi\n"
	"1:	movb (%rsi), %al\n"
	"	dec %rdi\n"
	"	jnz 1b\n"
	"	xorl %eax, %eax\n"
	"	int $0x80\n"
	".popsection");

_Static_assert(USER_ABSENT == 0x8000100000, "the address in user_faults");

static void on_page_fault(struct trap_frame *frame)
{
	if (frame->cs != USER_CS || frame->error_code != PF_USER || read_cr2() != USER_ABSENT)
		unexpected_trap(frame);
	faults_taken++;
	frame->rip += LOAD_LENGTH;
}

static u64 no_syscall(u64 number, u64 a, u64 b, u64 c)
{
	fail("system call %lu(%lu, %lu, %lu)", number, a, b, c);
}

static void fault_loop(u64 count)
{
	enter_user(USER_CODE + (u64)(user_faults - _user_start), USER_STACK, count, no_syscall);
}

/* One cycle through all pages in random order (Sattolo's shuffle, in place over the links). */
static void make_region(void)
{
	u64 state = 1;

	region = ram_alloc(nr_pages * PAGE_SIZE, PAGE_SIZE);
	for (u64 i = 0; i < nr_pages; i++) {
		region[i].touched = 0;
		region[i].next = &region[i];
	}
	for (u64 i = nr_pages - 1; i > 0; i--) {
		u64 j = random_next(&state) % i;
		struct page *other = region[j].next;

		region[j].next = region[i].next;
		region[i].next = other;
	}
}

static void make_spaces(void)
{
	for (int i = 0; i < SPACES; i++) {
		spaces[i] = space_create();
		for (u64 page = 0; page < SPACE_PAGES; page++)
			map_page(spaces[i], FIRST_GVA + page * PAGE_SIZE, frame_alloc_zeroed(),
				 PT_PRESENT | PT_WRITABLE);
	}
}

static void make_program(void)
{
	u64 root = space_create();

	map_page(root, USER_CODE, (u64)_user_start, PT_PRESENT | PT_USER);
	map_page(root, USER_STACK - PAGE_SIZE, frame_alloc_zeroed(), PT_PRESENT | PT_USER | PT_WRITABLE);
	set_handler(VECTOR_PF, on_page_fault);
	write_cr3(root);
}

static void check_touched(void)
{
	for (u64 i = 0; i < nr_pages; i++)
		if (region[i].touched != nr_touch * rounds)
			fail("page %lu: touched %lu times, not %lu", i, region[i].touched, nr_touch * rounds);
}

static void check_spaces(void)
{
	for (u64 i = 0; i < SPACES; i++) {
		u64 visits = (nr_switches / SPACES + (i < nr_switches % SPACES)) * rounds;

		write_cr3(spaces[i]);
		for (u64 page = 0; page < SPACE_PAGES; page++)
			if (*(volatile u64 *)(FIRST_GVA + page * PAGE_SIZE) != visits)
				fail("space %lu page %lu: not visited %lu times", i, page, visits);
	}
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "size", &size, PAGE_SIZE, 1UL << 36 },	{ "rounds", &rounds, 1, 1UL << 20 },
		{ "mixed", &nr_mixed, 0, 1UL << 40 },		{ "copy", &nr_copy, 0, 1UL << 40 },
		{ "touch", &nr_touch, 0, 1UL << 40 },		{ "chase", &nr_chase, 0, 1UL << 40 },
		{ "switches", &nr_switches, 0, 1UL << 40 },	{ "faults", &nr_faults, 0, 1UL << 40 },
		{ "ipis", &nr_ipis, 0, 1UL << 40 },		{ "timers", &nr_timers, 0, 1UL << 40 },
		{ "syscalls", &nr_syscalls, 0, 1UL << 40 },	{ "inputs", &nr_inputs, 0, 1UL << 40 },
		{ "cpuids", &nr_cpuids, 0, 1UL << 40 },
	};
	u64 boot = read_cr3();

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	nr_pages = DIV_ROUND_UP(size, PAGE_SIZE);
	make_region();
	make_spaces();
	run('m', nr_mixed, mixed_loop);
	run('c', nr_copy, copy_loop);
	run('t', nr_touch, touch_loop);
	run('r', nr_chase, chase_loop);
	run('s', nr_switches, switch_loop);
	check_spaces();
	make_program();
	run('f', nr_faults, fault_loop);
	syscall_setup();
	run('y', nr_syscalls, syscall_loop);
	write_cr3(boot);
	if (nr_ipis || nr_timers)
		interrupt_setup();
	run('i', nr_ipis, ipi_loop);
	run('a', nr_timers, timer_loop);
	run('p', nr_inputs, input_loop);
	run('x', nr_cpuids, cpuid_loop);
	check_touched();
	if (faults_taken != nr_faults * rounds)
		fail("%lu faults at CPL 3, not %lu", faults_taken, nr_faults * rounds);
	if (interrupts_taken != (nr_ipis + nr_timers) * rounds)
		fail("%lu interrupts, not %lu", interrupts_taken, (nr_ipis + nr_timers) * rounds);
	if (syscalls_taken != nr_syscalls * rounds)
		fail("%lu system calls, not %lu", syscalls_taken, nr_syscalls * rounds);
	finish(checksum, true);
}
