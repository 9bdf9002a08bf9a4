/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The table of cases. Output: a line for each difference from the manual, the number of cases, and
 * a checksum over all events. Cases in which QEMU's TCG is known to differ run with exact=1 only.
 */
#include "traps.h"

extern const struct group fault_group, segment_group, privilege_group, debug_group, watch_group,
	syscall_group, nested_group;

static const struct group *const groups[] = {
	&fault_group, &segment_group, &privilege_group, &debug_group, &watch_group, &syscall_group, &nested_group,
};

#define PIC1_MASK 0x21 /* some cases set IF */
#define PIC2_MASK 0xa1

bool exact;

static const struct test *running;
static u64 number, failures, ran, checksum;

bool expect(const char *what, u64 found, u64 wanted)
{
	if (found == wanted)
		return true;
	printf("%lu %s: %s is 0x%lx, not 0x%lx\n", number, running->name, what, found, wanted);
	failures++;
	return false;
}

bool expect_exact(const char *what, u64 found, u64 wanted)
{
	return !exact || expect(what, found, wanted);
}

bool expect_event(u64 n, u64 vector, u64 error, const u8 *rip)
{
	if (n >= nr_events)
		return expect("the number of events", nr_events, n + 1);
	return expect("vector", events[n].vector, vector) && expect("error code", events[n].error, error) &&
	       expect("saved RIP", events[n].rip, (u64)rip);
}

/* What is the same for every fault: flags, and the stack switch. */
static void expect_state(const struct test *test, const struct event *event)
{
	u64 user_stack = (u64)(case_stack + STACK_SIZE - 256), mask = FLAG_TF | FLAG_IF | FLAG_NT | FLAG_IOPL3;

	expect("saved RFLAGS", event->rflags & mask, case_flags & mask);
	if (event->vector != DONE)
		expect_exact("saved RF", event->rflags & FLAG_RF, test->where == AT ? FLAG_RF : 0);
	if (test->mode == K64 || test->mode == K32)
		expect("top of the stack", event->top, event->rsp & ~15UL);
	else
		expect("top of the stack", event->top, (u64)(rsp0_stack + STACK_SIZE));
	/* Rows push at most eight words, but for those that leave the stack. */
	if (event->vector != SS)
		expect("saved RSP is near", (user_stack - event->rsp) & ~0x7fUL, 0);
}

static void run_row(const struct test *test)
{
	run_code(test->mode, test->code);
	if (!expect_event(0, test->vector, test->error, test->where == AT ? test->at : test->next))
		return;
	expect_state(test, &events[0]);
}

static void fold(void)
{
	for (u64 n = 0; n < nr_events; n++) {
		checksum = checksum_add(checksum, events[n].vector << 32 | (u32)events[n].error);
		checksum = checksum_add(checksum, events[n].cs << 32 | events[n].ss);
	}
}

static void run_test(const struct test *test)
{
	running = test;
	reset_state();
	event_hook = NULL;
	case_flags = 0;
	max_events = MAX_EVENTS;
	if (test->setup)
		test->setup();
	if (test->run)
		test->run();
	else
		run_row(test);
	fold();
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
	open_low_memory();
	outb(0xff, PIC1_MASK);
	outb(0xff, PIC2_MASK);
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
