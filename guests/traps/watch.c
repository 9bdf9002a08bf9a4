/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Breakpoints on data and ports (SDM vol. 3, 17.2.5): every length at every alignment. */
#include "debug.h"

/* RBX: where to, RCX: how many bytes (1, 2, 4, 8), RDX: load or store. Filled in by hook at the start. */
CODE64(access_code, "nop\nint $0x82\ntestl %edx, %edx\njnz 5f\n"
	"cmpl $1, %ecx\njne 1f\nmovb (%rbx), %al\njmp access_after\n"
	"1: cmpl $2, %ecx\njne 1f\nmovw (%rbx), %ax\njmp access_after\n"
	"1: cmpl $4, %ecx\njne 1f\nmovl (%rbx), %eax\njmp access_after\n"
	"1: movq (%rbx), %rax\njmp access_after\n"
	"5: cmpl $1, %ecx\njne 1f\nmovb %al, (%rbx)\njmp access_after\n"
	"1: cmpl $2, %ecx\njne 1f\nmovw %ax, (%rbx)\njmp access_after\n"
	"1: cmpl $4, %ecx\njne 1f\nmovl %eax, (%rbx)\njmp access_after\n"
	"1: movq %rax, (%rbx)\njmp access_after\n" LABEL("access_after") "nop");

static u64 access_at, access_size;
static bool access_store;

static void fill_access(struct frame *frame)
{
	if (frame->vector != CALL)
		return;
	frame->rbx = access_at;
	frame->rcx = access_size;
	frame->rdx = access_store;
}

static void one_access(u64 watched, u64 watched_size, u64 type)
{
	bool touches = access_at < watched + watched_size && watched < access_at + access_size;
	bool wanted = touches && (access_store || type == ACCESS);

	event_hook = fill_access;
	max_events = 3;
	run_code(U64, access_code);
	if (nr_events != 2UL + wanted)
		printf("%s of %lu bytes at +%lu, breakpoint of %lu bytes: ", access_store ? "store" : "load", access_size,
		       access_at - (u64)case_data, watched_size);
	if (expect("the number of events", nr_events, 2UL + wanted) && wanted)
		expect("DR6", events[1].dr6, DR6_RESET | 1 << 1);
}

/*
 * Every length at every alignment of the access, for one breakpoint of every length. QEMU's TCG does
 * an access that is not aligned as two wider ones, and finds hits that are none.
 */
static void watch(u64 type)
{
	static const u8 lengths[] = { LENGTH_1, LENGTH_2, LENGTH_4, LENGTH_8 };

	for (u64 i = 0; i < 4; i++) {
		u64 watched = (u64)case_data + 16;

		set_dr7(DR7_RESET);
		breakpoint(1, watched, type, lengths[i]);
		for (access_size = 1; access_size <= 8; access_size *= 2)
			for (access_at = watched - 8; access_at <= watched + 8; access_at++)
				for (int store = 0; store < 2; store++) {
					access_store = store;
					if (!exact && access_at % access_size)
						continue;
					one_access(watched, 1UL << i, type);
				}
	}
}

static void watch_writes(void)
{
	watch(WRITE);
}

static void watch_accesses(void)
{
	watch(ACCESS);
}

/* The processor ignores the low bits of the address that the length covers. */
static void watch_unaligned_address(void)
{
	breakpoint(1, (u64)case_data + 19, WRITE, LENGTH_4);
	access_size = 1;
	access_store = true;
	for (access_at = (u64)case_data + 12; access_at < (u64)case_data + 24; access_at++)
		one_access((u64)case_data + 16, 4, WRITE);
}

/* A trap: the store is done, RIP is behind it. The rest of DR6 stays; a push, a string store and RMW hit too. */
CODE64(watch_code, "movl $case_data + 32, %edi\nmovl $7, (%rdi)" LABEL("watch_1") "incl (%rdi)" LABEL("watch_2")
	"movl (%rdi), %edx\nstosl" LABEL("watch_3") "movl $case_data + 40, %ecx\nxchgq %rcx, %rsp\npushq $9" LABEL("watch_4")
	"xchgq %rcx, %rsp\nlock\nxaddl %eax, case_data + 32" LABEL("watch_5") "nop");
extern const u8 watch_1[], watch_2[], watch_3[], watch_4[], watch_5[];

static void watch_instructions(void)
{
	at_event = 0;
	breakpoint(3, (u64)case_data + 32, WRITE, LENGTH_4);
	run_code(K64, watch_code);
	expect_db(1 << 3, watch_1);
	expect_db(1 << 3, watch_2);
	expect_db(1 << 3, watch_3);
	expect("RDX after the second hit", events[2].rdx, 8);
	expect_db(1 << 3, watch_4);
	expect_db(1 << 3, watch_5);
	expect_done();
}

/* A store that is stepped: one trap with both bits. */
static void step_onto_watch(void)
{
	start_step();
	breakpoint(3, (u64)case_data + 32, WRITE, LENGTH_4);
	run_code(K64, watch_code);
	at_event = 1;
	expect_db(1 << 3 | DR6_BS, watch_1);
	expect_db(1 << 3 | DR6_BS, watch_2);
}

/* I/O breakpoints: with CR4.DE, after the instruction. */
CODE64(port_code, "inb $0x80, %al" LABEL("port_1") "outb %al, $0x80" LABEL("port_2") "inb $0x81, %al" LABEL("port_3")
	"inw $0x80, %ax" LABEL("port_4") "nop");
extern const u8 port_1[], port_2[], port_3[], port_4[];

static void port_breakpoint(void)
{
	at_event = 0;
	set_cr4(get_cr4() | CR4_DE);
	breakpoint(2, 0x80, PORT_IO, LENGTH_1);
	run_code(K64, port_code);
	expect_db(1 << 2, port_1);
	expect_db(1 << 2, port_2);
	expect_db(1 << 2, port_4);
	expect_done();
}

static const struct test tests[] = {
	RUN(watch_writes) RUN(watch_accesses) RUN_EXACT(watch_unaligned_address) RUN(watch_instructions)
	RUN_EXACT(step_onto_watch) RUN_EXACT(port_breakpoint)
};
const struct group watch_group = { tests, ARRAY_SIZE(tests) };
