/* SPDX-License-Identifier: GPL-2.0-or-later */
/* #DB: single steps, breakpoints on code, general detect, ICEBP (SDM vol. 3, chapter 17). */
#include "debug.h"

void breakpoint(int n, u64 address, u64 type, u64 length)
{
	if (n == 0)
		set_dr0(address);
	else if (n == 1)
		set_dr1(address);
	else if (n == 2)
		set_dr2(address);
	else
		set_dr3(address);
	set_dr7(get_dr7() | DR7_GLOBAL(n) | DR7_TYPE(n, type, length));
}

u64 at_event;

bool expect_db(u64 dr6, const u8 *rip)
{
	u64 n = at_event++;

	return expect_event(n, DB, NONE, rip) && expect("DR6", events[n].dr6, DR6_RESET | dr6);
}

void expect_done(void)
{
	if (at_event >= nr_events)
		expect("the number of events", nr_events, at_event + 1);
	else
		expect("the last event", events[at_event].vector, DONE);
	at_event = 0;
}

void start_step(void)
{
	at_event = 0;
	case_flags = FLAG_TF;
}

CODE64(step_code, LABEL("step_1") "nop" LABEL("step_2") "movl $1, %eax" LABEL("step_3") "jmp 1f\nnop\n1:" LABEL("step_4")
	"call 2f" LABEL("step_6") "jmp 3f" LABEL("step_5") "2: ret\n3:" LABEL("step_7") "leaq 4(%rax), %rax" LABEL("step_8"));
extern const u8 step_1[], step_2[], step_3[], step_4[], step_5[], step_6[], step_7[], step_8[];

static void step_all(enum mode mode)
{
	const u8 *const steps[] = { step_2, step_3, step_4, step_5, step_6, step_7, step_8 };

	start_step();
	run_code(mode, step_code);
	for (u64 i = 0; i < ARRAY_SIZE(steps); i++) {
		expect_db(DR6_BS, steps[i]);
		expect("saved TF", events[i].rflags & (FLAG_TF | FLAG_RF), FLAG_TF);
	}
	expect_done();
}

static void step_kernel(void)
{
	step_all(K64);
}

static void step_user(void)
{
	step_all(U64);
}

CODE32(step32_code, "nop" LABEL("step32_2") "incl %eax" LABEL("step32_3"));
extern const u8 step32_2[], step32_3[];

static void step_compat(void)
{
	start_step();
	run_code(U32, step32_code);
	expect_db(DR6_BS, step32_2);
	expect_db(DR6_BS, step32_3);
	expect_done();
}

/* A trap after each repetition, at the instruction until the last (SDM vol. 3, 17.3.1.2). */
CODE64(rep_code, "movl $case_data, %esi" LABEL("rep_0") "leaq 64(%rsi), %rdi" LABEL("rep_1") "movl $3, %ecx" LABEL("rep_2")
	"rep movsb" LABEL("rep_3") "nop" LABEL("rep_4"));
extern const u8 rep_0[], rep_1[], rep_2[], rep_3[], rep_4[];

static void step_rep_movs(void)
{
	start_step();
	run_code(K64, rep_code);
	expect_db(DR6_BS, rep_0);
	expect_db(DR6_BS, rep_1);
	expect_db(DR6_BS, rep_2);
	expect_db(DR6_BS, rep_2);
	expect_db(DR6_BS, rep_2);
	expect("RCX after one repetition", events[3].rcx, 2);
	expect_db(DR6_BS, rep_3);
	expect("RCX after the last", events[5].rcx, 0);
	expect_db(DR6_BS, rep_4);
	expect_done();
}

/* POPF that sets TF: the first trap is after the next instruction; one that clears it: still one after itself. */
CODE64(popf_step_code, "pushfq\norl $0x100, (%rsp)\npopfq" LABEL("popf_1") "nop" LABEL("popf_2")
	"pushfq" LABEL("popf_3") "andl $~0x100, (%rsp)" LABEL("popf_4") "popfq" LABEL("popf_5") "nop");
extern const u8 popf_2[], popf_3[], popf_4[], popf_5[];

static void step_popf(void)
{
	at_event = 0;
	run_code(K64, popf_step_code);
	expect_db(DR6_BS, popf_2);
	expect_db(DR6_BS, popf_3);
	expect_db(DR6_BS, popf_4);
	expect_db(DR6_BS, popf_5);
	expect("saved TF after POPF has cleared it", events[3].rflags & FLAG_TF, 0);
	expect_done();
}

/* MOV SS and POP SS keep the trap back until the instruction after them is done. */
CODE64(mov_ss_code, "movl %ss, %eax" LABEL("mov_ss_1") "movl %eax, %ss" LABEL("mov_ss_2") "nop" LABEL("mov_ss_3") "nop" LABEL("mov_ss_4"));
extern const u8 mov_ss_1[], mov_ss_3[], mov_ss_4[];

static void step_mov_ss(void)
{
	start_step();
	run_code(K64, mov_ss_code);
	expect_db(DR6_BS, mov_ss_1);
	expect_db(DR6_BS, mov_ss_3);
	expect_db(DR6_BS, mov_ss_4);
	expect_done();
}

CODE32(pop_ss_code, "pushl %ss" LABEL("pop_ss_1") "popl %ss\nnop" LABEL("pop_ss_2") "nop" LABEL("pop_ss_3"));
extern const u8 pop_ss_1[], pop_ss_2[], pop_ss_3[];

static void step_pop_ss(void)
{
	start_step();
	run_code(U32, pop_ss_code);
	expect_db(DR6_BS, pop_ss_1);
	expect_db(DR6_BS, pop_ss_2);
	expect_db(DR6_BS, pop_ss_3);
	expect_done();
}

/* INT n is done without a trap: TF is cleared on the way, and set again by the handler's IRET. */
CODE64(step_int_code, "nop" LABEL("step_int_1") "int $0x82" LABEL("step_int_2") "nop" LABEL("step_int_3") "nop" LABEL("step_int_4"));
extern const u8 step_int_1[], step_int_2[], step_int_3[], step_int_4[];

static void step_int_n(void)
{
	start_step();
	run_code(K64, step_int_code);
	expect_db(DR6_BS, step_int_1);
	at_event++;
	expect_event(1, CALL, NONE, step_int_2);
	expect("TF saved by INT", events[1].rflags & FLAG_TF, FLAG_TF);
	expect_db(DR6_BS, step_int_3);
	expect_db(DR6_BS, step_int_4);
	expect_done();
}

/* A fault at an instruction that is stepped: no trap for it, RIP and TF as they were. */
CODE64(step_fault_code, "xorl %ecx, %ecx" LABEL("step_fault_1") "divl %ecx");
extern const u8 step_fault_1[];

static void step_fault(void)
{
	start_step();
	run_code(U64, step_fault_code);
	expect_db(DR6_BS, step_fault_1);
	expect_event(1, DE, NONE, step_fault_1);
	expect("saved TF", events[1].rflags & FLAG_TF, FLAG_TF);
}

/* Instructions that leave a virtual machine are stepped like others. */
CODE64(step_exit_code, "movq %cr4, %rax" LABEL("exit_1") "movq %rax, %cr4" LABEL("exit_2") "movq %cr3, %rax" LABEL("exit_3")
	"movq %rax, %cr3" LABEL("exit_4") "cpuid" LABEL("exit_5") "movl $0x277, %ecx" LABEL("exit_6") "rdmsr" LABEL("exit_7")
	"wrmsr" LABEL("exit_8") "movq %cr8, %rax" LABEL("exit_9") "movq %rax, %cr8" LABEL("exit_10") "outb %al, $0x80" LABEL("exit_11")
	"inb $0x80, %al" LABEL("exit_12") "clts" LABEL("exit_13") "invlpg case_data" LABEL("exit_14"));
extern const u8 exit_1[], exit_2[], exit_3[], exit_4[], exit_5[], exit_6[], exit_7[], exit_8[], exit_9[], exit_10[], exit_11[],
	exit_12[], exit_13[], exit_14[];

static void step_exits(void)
{
	const u8 *const steps[] = { exit_1, exit_2, exit_3, exit_4, exit_5, exit_6, exit_7,
				    exit_8, exit_9, exit_10, exit_11, exit_12, exit_13, exit_14 };

	start_step();
	run_code(K64, step_exit_code);
	for (u64 i = 0; i < ARRAY_SIZE(steps); i++)
		expect_db(DR6_BS, steps[i]);
	expect_done();
}

/* SYSCALL clears TF if FMASK says so; without, the trap comes in the kernel, after SYSCALL. */
CODE64(step_syscall_code, "nop" LABEL("syscall_1") "syscall" LABEL("syscall_2") "nop");
CODE64(step_target_code, LABEL("target_1") "nop" LABEL("target_2") "nop" LABEL("target_3"));
extern const u8 syscall_1[], target_1[], target_2[], target_3[];

static void step_syscall_masked(void)
{
	wrmsr(MSR_LSTAR, (u64)step_target_code);
	wrmsr(MSR_FMASK, FLAG_TF);
	start_step();
	run_code(U64, step_syscall_code);
	expect_db(DR6_BS, syscall_1);
	expect_done();
}

static void step_syscall(void)
{
	wrmsr(MSR_LSTAR, (u64)step_target_code);
	start_step();
	run_code(U64, step_syscall_code);
	expect_db(DR6_BS, syscall_1);
	expect_db(DR6_BS, target_1);
	expect_db(DR6_BS, target_2);
	expect_db(DR6_BS, target_3);
	expect_done();
}

/* IRET that sets TF: the first trap is after the first instruction it goes to. */
CODE64(iret_step_code, "movq %rsp, %rax\npushq $0x10\npushq %rax\npushq $0x102\npushq $8\npushq $iret_1\niretq" LABEL("iret_1") "nop"
	LABEL("iret_2") "nop" LABEL("iret_3"));
extern const u8 iret_2[], iret_3[];

static void step_iret(void)
{
	at_event = 0;
	run_code(K64, iret_step_code);
	expect_db(DR6_BS, iret_2);
	expect_db(DR6_BS, iret_3);
	expect_done();
}

/* A breakpoint on code is a fault: before the instruction. RF, set by the handler, lets it be done. */
static void resume(struct frame *frame)
{
	if (frame->vector == DB)
		frame->rflags |= FLAG_RF;
}

static void execute_all(enum mode mode, const u8 *code, const u8 *const at[4])
{
	at_event = 0;
	event_hook = resume;
	for (int i = 0; i < 4; i++)
		breakpoint(i, (u64)at[i], EXECUTE, LENGTH_1);
	run_code(mode, code);
	for (int i = 0; i < 4; i++) {
		expect("saved RF", events[i].rflags & FLAG_RF, 0);
		expect_db(1UL << i, at[i]);
	}
	expect_done();
}

static void execution_breakpoints(void)
{
	const u8 *const at[4] = { step_1, step_2, step_5, step_7 };

	execute_all(K64, step_code, at);
	execute_all(U64, step_code, at);
}

static void execution_breakpoint_compat(void)
{
	at_event = 0;
	event_hook = resume;
	breakpoint(2, (u64)step32_2, EXECUTE, LENGTH_1);
	run_code(U32, step32_code);
	expect_db(1 << 2, step32_2);
	expect_done();
}

/* Not on the first byte of an instruction, or not enabled: nothing. */
static void execution_breakpoint_missed(void)
{
	at_event = 0;
	event_hook = resume;
	breakpoint(0, (u64)step_2 + 1, EXECUTE, LENGTH_1);
	set_dr1((u64)step_3);
	run_code(K64, step_code);
	expect_done();
}

/* A step onto a breakpoint: the trap of the step first, then the fault with B0. RF lasts for one instruction. */
static void step_onto_breakpoint(void)
{
	start_step();
	event_hook = resume;
	breakpoint(0, (u64)step_2, EXECUTE, LENGTH_1);
	run_code(K64, step_code);
	expect_event(0, DB, NONE, step_2);
	for (u64 i = 0; i < nr_events && i < 2; i++)
		expect_exact("DR6", events[i].dr6 & (DR6_BS | 1), i ? DR6_BS : DR6_BS | 1);
}

/* Two breakpoints on one instruction set two bits. */
static void breakpoints_together(void)
{
	at_event = 0;
	event_hook = resume;
	breakpoint(0, (u64)step_2, EXECUTE, LENGTH_1);
	breakpoint(3, (u64)step_2, EXECUTE, LENGTH_1);
	run_code(K64, step_code);
	expect_db(1 | 1 << 3, step_2);
	expect_done();
}

/* General detect: #DB before any access to a debug register, and GD is cleared for the handler. */
CODE64(detect_code, "nop" LABEL("detect_1") "movq %db0, %rax");
CODE64(detect_write_code, "nop" LABEL("detect_2") "movq %rax, %db3");
extern const u8 detect_1[], detect_2[];
static u64 dr7_inside;

static void note_dr7(struct frame *frame)
{
	(void)frame;
	dr7_inside = get_dr7();
}

static void general_detect(void)
{
	const u8 *const codes[] = { detect_code, detect_write_code }, *const at[] = { detect_1, detect_2 };

	for (int i = 0; i < 2; i++) {
		at_event = 0;
		max_events = 1;
		event_hook = note_dr7;
		set_dr7(DR7_RESET | DR7_GD);
		run_code(K64, codes[i]);
		set_dr7(DR7_RESET);
		expect_db(DR6_BD, at[i]);
		expect("DR7 in the handler", dr7_inside, DR7_RESET);
	}
}

/* ICEBP (INT1): a #DB whose gate is not checked for DPL; DR6 stays as it is. */
CODE64(icebp_code, "nop\n.byte 0xf1" LABEL("icebp_1"));
extern const u8 icebp_1[];

static void icebp(void)
{
	at_event = 0;
	run_code(U64, icebp_code);
	expect_db(0, icebp_1);
	expect_done();
}

/* DR6 is sticky: bits of an earlier #DB stay until software clears them. Reserved bits read as 1. */
static void debug_registers(void)
{
	set_dr6(0);
	expect("DR6 after 0 was written", get_dr6(), DR6_RESET);
	set_dr6(0xffffffff);
	expect_exact("DR6 after all ones were written", get_dr6(), 0xffffefff);
	set_dr6(DR6_RESET);
	set_dr7(0x0000dc00 & ~DR7_GD);
	expect("DR7 bit 10", get_dr7() & DR7_RESET, DR7_RESET);
	expect_exact("DR7 bits that are always 0", get_dr7() & 0xd000, 0);
	set_dr7(DR7_RESET);
	set_dr0(0x123456789abcdef0);
	expect("DR0", get_dr0(), 0x123456789abcdef0);
	set_dr0(0);
}

static const struct test tests[] = {
	RUN(step_kernel) RUN(step_user) RUN(step_compat) RUN(step_rep_movs) RUN(step_popf) RUN(step_mov_ss)
	RUN(step_pop_ss) RUN(step_int_n) RUN(step_fault) RUN(step_exits) RUN(step_syscall_masked) RUN(step_syscall)
	RUN(step_iret) RUN(execution_breakpoints) RUN(execution_breakpoint_compat) RUN(execution_breakpoint_missed)
	RUN(step_onto_breakpoint) RUN(breakpoints_together) RUN_EXACT(general_detect) RUN_EXACT(icebp) RUN(debug_registers)
};
const struct group debug_group = { tests, ARRAY_SIZE(tests) };
