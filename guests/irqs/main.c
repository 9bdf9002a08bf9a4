/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table of cases. Output: a line for each difference, the number of cases, and a checksum over
 * the vectors that arrived. What QEMU's TCG lacks runs with exact=1 only.
 */
#include "irqs.h"

#define WAIT_TSC 20000000000UL

struct gate {
	u16 offset_low, selector;
	u8 ist, type;
	u16 offset_mid;
	u32 offset_high, reserved;
};

extern const u8 vector_stubs[];
extern const struct group window_group, pic_group, apic_group, ioapic_group, timer_group, x2apic_group;

static const struct group *const groups[] = {
	&window_group, &pic_group, &apic_group, &ioapic_group, &timer_group, &x2apic_group,
};

bool exact;
u8 log[MAX_LOG];
u64 nr_log, last_rip, depth;
void (*handler)(u64 vector, struct irq_frame *frame);

static struct gate idt[256] __attribute__((aligned(16)));
static const struct test *running;
static u64 number, failures, ran, checksum;

void on_vector(u64 vector, struct irq_frame *frame)
{
	if (vector < 32 && vector != 2 && !handler)
		fail("case %s: exception %lu at %p", running->name, vector, (void *)frame->rip);
	if (nr_log < MAX_LOG)
		log[nr_log++] = (u8)vector;
	last_rip = frame->rip;
	if (handler)
		handler(vector, frame);
}

static void make_idt(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = { sizeof(idt) - 1, (u64)idt };

	for (u64 vector = 0; vector < 256; vector++) {
		u64 stub = (u64)vector_stubs + 32 * vector;

		idt[vector] = (struct gate){ (u16)stub, KERNEL_CS, 0, 0x8e, (u16)(stub >> 16), (u32)(stub >> 32), 0 };
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

bool expect(const char *what, u64 found, u64 wanted)
{
	if (found == wanted)
		return true;
	printf("%lu %s: %s is 0x%lx, not 0x%lx\n", number, running->name, what, found, wanted);
	failures++;
	return false;
}

void check_log(const u8 *wanted, u64 count)
{
	if (nr_log != count || memcmp(log, wanted, count)) {
		printf("%lu %s: vectors are", number, running->name);
		for (u64 i = 0; i < nr_log; i++)
			printf(" %02x", log[i]);
		printf(", not");
		for (u64 i = 0; i < count; i++)
			printf(" %02x", wanted[i]);
		printf("\n");
		failures++;
	}
	for (u64 i = 0; i < count; i++)
		checksum = checksum_add(checksum, wanted[i]);
	nr_log = 0;
}

void expect_nothing(void)
{
	open_window();
	check_log(NULL, 0);
}

bool wait_for(u64 count)
{
	u64 start = rdtsc();

	sti();
	while (*(volatile u64 *)&nr_log < count && rdtsc() - start < WAIT_TSC)
		__asm__ volatile("pause" : : : "memory");
	cli();
	return nr_log >= count;
}

static void run_test(const struct test *test)
{
	running = test;
	reset_chips();
	nr_log = depth = 0;
	handler = NULL;
	test->run();
	checksum = checksum_add(checksum, number);
	ran++;
}

static bool chosen(const struct test *test, u64 only, const char *name)
{
	return name ? !strcmp(test->name, name) : !only || only == number;
}

/* The argument of case=, if it is a name; it is taken out of the list. */
static const char *take_name(int *argc, char **argv)
{
	for (int i = 1; i < *argc; i++) {
		const char *name = argv[i] + 5;

		if (strncmp(argv[i], "case=", 5) || (*name >= '0' && *name <= '9'))
			continue;
		argv[i] = argv[--*argc];
		return name;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	u64 only = DEFAULT_case, is_exact = DEFAULT_exact, list = DEFAULT_list;
	const struct param params[] = { { "case", &only, 0, 1000 }, { "exact", &is_exact, 0, 1 }, { "list", &list, 0, 1 } };
	const char *name = take_name(&argc, argv);

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	exact = is_exact;
	make_idt();
	for (u64 g = 0; g < ARRAY_SIZE(groups); g++) {
		for (u64 i = 0; i < groups[g]->count; i++) {
			const struct test *test = &groups[g]->tests[i];

			number++;
			if (list)
				printf("%lu %s\n", number, test->name);
			else if (chosen(test, only, name) && (exact || !test->exact))
				run_test(test);
		}
	}
	if (!list && !ran)
		usage("no such case");
	printf("%lu cases, %lu differences\n", ran, failures);
	finish(checksum, !failures);
}
