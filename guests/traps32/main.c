/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tables of cases, as those of the 64-bit guest. */
#include "traps32.h"

extern const struct group fault_group, gate_group, v86_group;

static const struct group *const groups[] = { &fault_group, &gate_group, &v86_group };

bool exact;

static const struct test *running;
static u32 number, failures, ran;
static u64 checksum;

bool expect(const char *what, u32 found, u32 wanted)
{
	if (found == wanted)
		return true;
	printf("%u %s: %s is 0x%x, not 0x%x\n", number, running->name, what, found, wanted);
	failures++;
	return false;
}

bool expect_event(u32 n, u32 vector, u32 error, u32 eip)
{
	if (n >= nr_events)
		return expect("the number of events", nr_events, n + 1);
	return expect("vector", events[n].vector, vector) && expect("error code", events[n].error, error) &&
	       expect("saved EIP", events[n].eip, eip);
}

static void run_row(const struct test *test)
{
	u32 where = (u32)(test->where == AT ? test->at : test->next), frame = events[0].at;

	run_code(test->mode, test->code, test->end);
	if (test->mode >= U16)
		where -= (u32)test->code;
	if (!expect_event(0, test->vector, test->error, where))
		return;
	frame = events[0].at;
	if (exact && test->vector != DONE)
		expect("saved RF", events[0].eflags & FLAG_RF, test->where == AT ? FLAG_RF : 0);
	expect("saved flags", events[0].eflags & (FLAG_TF | FLAG_IF | FLAG_NT | FLAG_IOPL3), case_flags);
	if (test->mode == V86)
		expect("top of the stack", frame + sizeof(struct frame), own_tss.esp0);
	else if (test->mode != K32)
		expect("top of the stack", frame + offsetof(struct frame, v86_es), own_tss.esp0);
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
	for (u32 n = 0; n < nr_events; n++) {
		checksum = checksum_add(checksum, events[n].vector << 24 ^ events[n].error);
		checksum = checksum_add(checksum, events[n].cs << 16 | events[n].ss);
	}
	ran++;
}

int main(int argc, char **argv)
{
	parse_flag(argc, argv, "exact", &exact);
	for (u32 g = 0; g < sizeof(groups) / sizeof(groups[0]); g++) {
		for (u32 i = 0; i < groups[g]->count; i++) {
			number++;
			if (exact || !groups[g]->tests[i].exact)
				run_test(&groups[g]->tests[i]);
		}
	}
	printf("%u cases, %u differences\n", ran, failures);
	if (failures)
		fail("%u differences", failures);
	finish(checksum);
}
