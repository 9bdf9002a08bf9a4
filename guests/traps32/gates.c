/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Delivery: gates that fail, stack switches, call gates, hardware tasks, single steps. */
#include "traps32.h"

#define TASK_GATE 0x8500
#define INTERRUPT_GATE 0x8e00
#define CALL_GATE 0xec00
#define ABSENT 0x0e00
#define EXT 1
#define IDT(vector) ((vector) << 3 | 2)
#define TYPE_BUSY (2ull << 40)
#define USER_ESP ((u32)(case_stack + STACK_SIZE - 128))
#define RUN_CODE(mode, name) run_code(mode, name, name##_end)

CODE(ud_code, ".code32", "ud2");
CODE(int_code, ".code32", "int $0x82" LABEL("int_next") "nop");
CODE(gp_code, ".code32", "movl $0x200, %eax" LABEL("gp_at") "movl %eax, %ds");
extern const u8 int_next[], gp_at[];

static void gates_that_fail(void)
{
	static const struct {
		u16 type, selector;
		u32 vector, error;
	} bad[] = {
		{ ABSENT, S_KCODE, NP, IDT(UD) | EXT },	  { 0x8c00, S_KCODE, GP, IDT(UD) | EXT },
		{ 0x8900, S_KCODE, GP, IDT(UD) | EXT },	  { INTERRUPT_GATE, 0, GP, EXT },
		{ INTERRUPT_GATE, S_BEYOND, GP, S_BEYOND | EXT }, { INTERRUPT_GATE, S_KDATA, GP, S_KDATA | EXT },
		{ INTERRUPT_GATE, S_ABSENT_CODE, NP, S_ABSENT_CODE | EXT }, { INTERRUPT_GATE, S_UCODE, GP, (S_UCODE & ~3) | EXT },
	};

	for (u32 i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		set_gate(UD, stub_of(UD), bad[i].selector, bad[i].type);
		RUN_CODE(K32, ud_code);
		expect_event(0, bad[i].vector, bad[i].error, (u32)ud_code);
	}
}

static void gates_of_int_that_fail(void)
{
	set_gate(CALL, stub_of(CALL), S_KCODE, ABSENT | 0x6000);
	RUN_CODE(U32, int_code);
	expect_event(0, NP, IDT(CALL), (u32)int_code);
	set_gate(CALL, stub_of(CALL), S_KDATA, INTERRUPT_GATE | 0x6000);
	RUN_CODE(U32, int_code);
	expect_event(0, GP, S_KDATA, (u32)int_code);
}

static void double_fault(void)
{
	own_idt[GP].type = ABSENT;
	RUN_CODE(K32, gp_code);
	expect_event(0, DF, 0, (u32)gp_at);
	RUN_CODE(U32, gp_code);
	expect_event(0, DF, 0, (u32)gp_at);
}

static u32 ss_inside;

static void note_ss(struct frame *frame)
{
	(void)frame;
	__asm__ volatile("movl %%ss, %0" : "=r"(ss_inside));
}

static void stack_switch(void)
{
	event_hook = note_ss;
	max_events = 1;
	RUN_CODE(U32, int_code);
	expect_event(0, CALL, NONE, (u32)int_next);
	expect("SS inside", ss_inside, S_KDATA);
	expect("saved SS", events[0].ss, S_UDATA);
	expect("saved ESP", events[0].esp, USER_ESP);
	expect("place of the frame", events[0].at + offsetof(struct frame, v86_es), own_tss.esp0);
	RUN_CODE(K32, int_code);
	expect("ESP at the same level", events[0].esp, USER_ESP);
}

/* #TS, or #SS for one that is absent, names the stack segment of the TSS. #TS itself comes by a task gate. */
static void try_stack_segment(u16 ss0, u8 vector)
{
	reset_state();
	set_gate(vector, 0, S_TASK, TASK_GATE);
	task_tss.eip = stub_of(vector);
	own_tss.ss0 = ss0;
	RUN_CODE(U32, int_code);
	expect("vector", events[0].vector, vector);
	expect("error code", *(u32 *)(task_stack + STACK_SIZE - 4), ss0 & ~3u);
	expect("EIP of the old task", own_tss.eip, (u32)int_code);
	expect("CS of the old task", own_tss.cs, S_UCODE);
}

static void bad_stack_segment(void)
{
	static const u16 bad[] = { 0, S_UDATA, S_RODATA, S_KCODE, S_BEYOND, S_RING1_DATA };

	for (u32 i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		try_stack_segment(bad[i], TS);
}

static void absent_stack_segment(void)
{
	try_stack_segment(S_ABSENT_DATA, SS);
}

/* A task gate: the old state goes into its TSS, the new task is nested, IRET goes back. */
static void task_by_interrupt(void)
{
	set_gate(CALL, 0, S_TASK, TASK_GATE | 0x6000);
	RUN_CODE(U32, int_code);
	expect_event(0, DONE, NONE, (u32)int_next + 3);
	expect("entries", task_entries, 1);
	expect("NT inside", task_flags & FLAG_NT, FLAG_NT);
	expect("ESP inside", task_esp, (u32)(task_stack + STACK_SIZE));
	expect("back link", task_tss.link & 0xffff, S_TSS);
	expect("the old task's EIP", own_tss.eip, (u32)int_next);
	expect("the old task's ESP", own_tss.esp, USER_ESP);
	expect("the old task's SS", own_tss.ss, S_UDATA);
	expect("busy again", !!(own_gdt[S_TSS / 8] & TYPE_BUSY), 1);
	expect("no longer busy", !!(own_gdt[S_TASK / 8] & TYPE_BUSY), 0);
	expect("TS", read_cr0() & 8, 8);
	expect("NT after", events[0].eflags & FLAG_NT, 0);
}

static void task_by_exception(void)
{
	set_gate(UD, 0, S_TASK, TASK_GATE);
	own_idt[GP] = own_idt[UD];
	RUN_CODE(U32, gp_code);
	expect("entries", task_entries, 2);
	expect("error code", task_error, S_BEYOND);
	expect("the old task's EIP", own_tss.eip, (u32)gp_at);
}

/* CALL to a TSS nests, JMP does not; a busy one is refused. */
CODE(call_task, ".code32", "lcall $0x30, $0" LABEL("call_task_next") "nop");
CODE(jump_busy, ".code32", "ljmp $0x28, $0");
extern const u8 call_task_next[];

static void task_by_call(void)
{
	RUN_CODE(K32, call_task);
	expect_event(0, DONE, NONE, (u32)call_task_next + 3);
	expect("entries", task_entries, 1);
	expect("back link", task_tss.link & 0xffff, S_TSS);
	expect("the old task's EIP", own_tss.eip, (u32)call_task_next);
	RUN_CODE(K32, jump_busy);
	expect_event(0, GP, S_TSS, (u32)jump_busy);
}

static void task_privilege(void)
{
	RUN_CODE(U32, call_task);
	expect_event(0, GP, S_TASK, (u32)call_task);
}

/* A call gate copies parameters to the inner stack; RETF n takes them off both. */
CODE(call_gate_code, ".code32", "pushl $0x1111\npushl $0x2222\nlcall $0x3b, $0" LABEL("call_gate_next") "nop");
CODE(call_gate_target, ".code32", "movl 8(%esp), %eax\nmovl 12(%esp), %ecx\nmovl %esp, %edx\nlretl $8");
extern const u8 call_gate_next[];

static void call_gate(void)
{
	u32 target = (u32)call_gate_target;

	own_gdt[S_SPARE / 8] = (target & 0xffff) | (u64)S_KCODE << 16 | (u64)(CALL_GATE | 2) << 32 | (u64)(target >> 16) << 48;
	RUN_CODE(U32, call_gate_code);
	if (!expect_event(0, DONE, NONE, (u32)call_gate_next + 3))
		return;
	expect("first parameter", events[0].eax, 0x2222);
	expect("second parameter", events[0].ecx, 0x1111);
	expect("ESP inside", events[0].edx, own_tss.esp0 - 24);
	expect("ESP after", events[0].esp, USER_ESP);
	expect("CS after", events[0].cs, S_UCODE);
}

static void call_gate_that_fails(void)
{
	own_gdt[S_SPARE / 8] = (u64)S_KCODE << 16 | (u64)(CALL_GATE & ~0x6000) << 32;
	RUN_CODE(U32, call_gate_code);
	expect("vector", events[0].vector, GP);
	expect("error code", events[0].error, S_SPARE);
	own_gdt[S_SPARE / 8] = (u64)S_KCODE << 16 | (u64)(CALL_GATE & ~0x8000) << 32;
	RUN_CODE(U32, call_gate_code);
	expect("vector", events[0].vector, NP);
	expect("error code", events[0].error, S_SPARE);
}

CODE(step_code, ".code32", "nop" LABEL("step_1") "pushl $0\npopl %eax" LABEL("step_3") "nop" LABEL("step_4"));
extern const u8 step_1[], step_3[], step_4[];

static void single_step(void)
{
	case_flags = FLAG_TF;
	RUN_CODE(U32, step_code);
	expect_event(0, DB, NONE, (u32)step_1);
	expect("DR6", events[0].dr6 & 0x400f, 0x4000);
	expect_event(2, DB, NONE, (u32)step_3);
	expect_event(3, DB, NONE, (u32)step_4);
	expect("the number of events", nr_events, 5);
}

static void resume(struct frame *frame)
{
	if (frame->vector == DB)
		frame->eflags |= FLAG_RF;
}

static void breakpoint(void)
{
	event_hook = resume;
	__asm__ volatile("movl %0, %%dr1; movl %1, %%dr7" : : "r"(step_3), "r"(0x408));
	RUN_CODE(U32, step_code);
	expect_event(0, DB, NONE, (u32)step_3);
	expect("DR6", events[0].dr6 & 0xf, 2);
	expect_event(1, DONE, NONE, (u32)step_4 + 2);
}

static const struct test tests[] = {
	RUN_EXACT(gates_that_fail) RUN(gates_of_int_that_fail) RUN(double_fault) RUN(stack_switch) RUN(bad_stack_segment)
	RUN_EXACT(absent_stack_segment) RUN(task_by_interrupt) RUN(task_by_exception) RUN(task_by_call) RUN(task_privilege) RUN(call_gate)
	RUN(call_gate_that_fails) RUN(single_step) RUN(breakpoint)
};
const struct group gate_group = { tests, sizeof(tests) / sizeof(tests[0]) };
