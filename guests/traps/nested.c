/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Delivery itself: gates that fail, double faults, stacks, and NMIs. */
#include "traps.h"

#define APIC 0xfee00000UL
#define APIC_ICR 0x300
#define APIC_ICR_HIGH 0x310
#define ICR_NMI 0x4400 /* to APIC 0: the only CPU */
#define ABSENT_TYPE 0x0e
#define TASK_GATE 0x85
#define CALL_GATE 0x8c
#define BAD_STACK 0x8000001000UL /* nothing is mapped there */
#define IDT_EXT(vector, ext) ((u64)(vector) << 3 | 2 | (ext))

CODE64(ud_code, "nop" LABEL("ud_code_at") "ud2");
CODE64(int_code, "nop" LABEL("int_code_at") "int $0x82");
CODE64(int3_code, "nop" LABEL("int3_code_at") "int3");
CODE64(gp_code, "movl $0x200, %eax" LABEL("gp_code_at") "movl %eax, %ds");
CODE64(de_code, "xorl %ecx, %ecx" LABEL("de_code_at") "divl %ecx");
CODE64(pf_code, "movabsq $0x8000000000, %rbx" LABEL("pf_code_at") "movb (%rbx), %al");
extern const u8 ud_code_at[], int_code_at[], int3_code_at[], gp_code_at[], de_code_at[], pf_code_at[];

static void expect_one(enum mode mode, const u8 *code, u64 vector, u64 error, const u8 *at)
{
	max_events = 1;
	run_code(mode, code);
	expect_event(0, vector, error, at);
}

static void on_ist1(const char *what)
{
	expect(what, events[0].top, (u64)(ist_stack1 + STACK_SIZE));
}

/* The gate of an exception fails: the error code has IDT and EXT set; of INT n and INT3, EXT is clear. */
static void absent_gate_of_exception(void)
{
	own_idt[UD].type = ABSENT_TYPE;
	expect_one(K64, ud_code, NP, IDT_EXT(UD, 1), ud_code_at);
	expect_one(U64, ud_code, NP, IDT_EXT(UD, 1), ud_code_at);
}

static void absent_gate_of_int(void)
{
	own_idt[CALL].type = 0x6e;
	expect_one(U64, int_code, NP, IDT_EXT(CALL, 0), int_code_at);
	own_idt[BP].type = 0x6e;
	expect_one(U64, int3_code, NP, IDT_EXT(BP, 0), int3_code_at);
}

static void type_of_gate(void)
{
	static const u8 types[] = { TASK_GATE, CALL_GATE, 0x86, 0x87, 0x80, 0x89 };

	for (u64 i = 0; i < ARRAY_SIZE(types); i++) {
		own_idt[UD].type = types[i];
		expect_one(K64, ud_code, GP, IDT_EXT(UD, 1), ud_code_at);
	}
}

static void type_of_gate_of_int(void)
{
	own_idt[CALL].type = TASK_GATE | 0x60;
	expect_one(U64, int_code, GP, IDT_EXT(CALL, 0), int_code_at);
}

/* DPL is looked at before P, and for INT n only. */
static void dpl_before_presence(void)
{
	own_idt[CALL].type = ABSENT_TYPE;
	expect_one(U64, int_code, GP, IDT_EXT(CALL, 0), int_code_at);
}

static void beyond_the_idt(void)
{
	struct table_register idtr = { 16 * CALL - 1, (u64)own_idt };

	__asm__ volatile("lidt %0" : : "m"(idtr));
	expect_one(K64, int_code, GP, IDT_EXT(CALL, 0), int_code_at);
}

static void selector_of_gate(void)
{
	static const struct {
		u16 selector;
		u64 vector, error;
	} bad[] = {
		{ 0, GP, 0 }, { 3, GP, 0 }, { S_BEYOND, GP, S_BEYOND }, { S_KDATA, GP, S_KDATA }, { S_TSS, GP, S_TSS },
		{ S_ABSENT_CODE, NP, S_ABSENT_CODE }, { S_UCODE, GP, S_UCODE & ~3 }, { S_KCODE32, GP, S_KCODE32 },
	};

	for (u64 i = 0; i < ARRAY_SIZE(bad); i++) {
		own_idt[CALL].selector = bad[i].selector;
		expect_one(K64, int_code, bad[i].vector, bad[i].error, int_code_at);
	}
}

static void selector_of_gate_of_exception(void)
{
	own_idt[UD].selector = S_KDATA;
	expect_one(K64, ud_code, GP, S_KDATA | 1, ud_code_at);
}

/* A contributory fault inside a contributory fault: #DF with error code 0, here on IST 1, at the first instruction. */
static void double_fault(void)
{
	own_idt[GP].type = ABSENT_TYPE;
	expect_one(K64, gp_code, DF, 0, gp_code_at);
	on_ist1("stack of #DF");
	expect_one(U64, gp_code, DF, 0, gp_code_at);
	on_ist1("stack of #DF");
	own_idt[DE].type = ABSENT_TYPE;
	expect_one(U64, de_code, DF, 0, de_code_at);
}

static void double_fault_bad_selector(void)
{
	own_idt[DE].selector = S_KDATA;
	expect_one(K64, de_code, DF, 0, de_code_at);
}

static void double_fault_beyond_the_idt(void)
{
	struct table_register idtr = { 16 * 9 - 1, (u64)own_idt };

	__asm__ volatile("lidt %0" : : "m"(idtr));
	expect_one(K64, gp_code, DF, 0, gp_code_at);
}

static void double_fault_of_page_faults(void)
{
	own_tss.rsp[0] = BAD_STACK;
	expect_one(U64, pf_code, DF, 0, pf_code_at);
	expect("CR2", events[0].cr2, BAD_STACK - 8);
}

static void double_fault_page_fault_first(void)
{
	own_idt[PF].type = ABSENT_TYPE;
	expect_one(K64, pf_code, DF, 0, pf_code_at);
}

/* Not double: a page fault inside a contributory or benign event is delivered by itself. */
static void page_fault_inside(void)
{
	own_tss.rsp[0] = BAD_STACK;
	own_idt[PF].ist = 2;
	expect_one(U64, de_code, PF, PF_WRITE, de_code_at);
	expect("CR2", events[0].cr2, BAD_STACK - 8);
	expect("stack", events[0].top, (u64)(ist_stack2 + STACK_SIZE));
	expect_one(U64, int_code, PF, PF_WRITE, int_code_at);
	expect_one(U64, ud_code, PF, PF_WRITE, ud_code_at);
}

/* #TS: the TSS ends before the stack pointer that is needed. */
static void tss_too_short(void)
{
	set_tss(S_TSS, (u64)&own_tss, 0x52, 0x89);
	load_tr(S_TSS);
	own_idt[CALL].ist = 7;
	expect_one(U64, int_code, TS, S_TSS, int_code_at);
	own_idt[UD].ist = 7;
	expect_one(K64, ud_code, TS, S_TSS | 1, ud_code_at);
}

static void tss_just_long_enough(void)
{
	own_tss.ist[6] = (u64)(ist_stack2 + STACK_SIZE);
	set_tss(S_TSS, (u64)&own_tss, 0x5b, 0x89);
	load_tr(S_TSS);
	own_idt[CALL].ist = 7;
	expect_one(U64, int_code, CALL, NONE, int_code_at + 2);
	expect("stack", events[0].top, (u64)(ist_stack2 + STACK_SIZE));
}

static void stack_not_canonical(void)
{
	own_tss.rsp[0] = 0x800000001000;
	own_idt[SS].ist = 2;
	own_idt[GP].ist = 2;
	expect_one(U64, int_code, SS, 0, int_code_at);
}

/* All stacks are aligned to 16 by the CPU, and the old RSP is saved as it was. */
CODE64(odd_stack_code, "leaq -5(%rsp), %rsp\nint $0x82" LABEL("odd_stack_next"));
extern const u8 odd_stack_next[];

static void alignment(void)
{
	expect_one(K64, odd_stack_code, CALL, NONE, odd_stack_next);
	expect("saved RSP", events[0].rsp, (u64)(case_stack + STACK_SIZE - 256) - 5);
	expect("top", events[0].top, (u64)(case_stack + STACK_SIZE - 256) - 16);
	own_tss.rsp[0] = (u64)(rsp0_stack + STACK_SIZE) - 9;
	expect_one(U64, odd_stack_code, CALL, NONE, odd_stack_next);
	expect("top", events[0].top, (u64)(rsp0_stack + STACK_SIZE) - 16);
	own_tss.ist[0] -= 24;
	own_idt[CALL].ist = 1;
	expect_one(U64, odd_stack_code, CALL, NONE, odd_stack_next);
	expect("top", events[0].top, (u64)(ist_stack1 + STACK_SIZE) - 32);
}

static void ist_at_the_same_level(void)
{
	own_idt[UD].ist = 1;
	expect_one(K64, ud_code, UD, NONE, ud_code_at);
	on_ist1("stack of #UD");
	expect("saved RSP", events[0].rsp, (u64)(case_stack + STACK_SIZE - 256));
	expect("saved SS", events[0].ss, S_KDATA);
}

/* After a switch to CPL 0, SS is null with RPL 0. */
static u64 ss_inside, cs_inside;

static void note_selectors(struct frame *frame)
{
	(void)frame;
	__asm__ volatile("mov %%ss, %0\nmov %%cs, %1" : "=r"(ss_inside), "=r"(cs_inside));
}

static void selectors_inside(void)
{
	event_hook = note_selectors;
	expect_one(U64, int_code, CALL, NONE, int_code_at + 2);
	expect("SS inside", ss_inside, 0);
	expect("CS inside", cs_inside, S_KCODE);
	expect_one(K64, int_code, CALL, NONE, int_code_at + 2);
	expect("SS inside at CPL 0", ss_inside, S_KDATA);
}

/* NMIs. The code spins until the hook has seen enough of them. */
CODE64(nmi_code, "movl $0xfee00300, %ebx\nmovl $0x4400, (%rbx)\n1: pause\ntestl %eax, %eax\njz 1b");

static u64 wanted_nmis, depth, deepest;

static void send_nmi(void)
{
	*(volatile u32 *)(APIC + APIC_ICR_HIGH) = 0;
	*(volatile u32 *)(APIC + APIC_ICR) = ICR_NMI;
	for (int i = 0; i < 100; i++)
		__asm__ volatile("pause");
}

static u64 count_of(u64 vector)
{
	u64 count = 0;

	for (u64 n = 0; n < nr_events; n++)
		count += events[n].vector == vector;
	return count;
}

static void count_nmis(struct frame *frame)
{
	frame->rax = count_of(NMI) >= wanted_nmis;
}

static void nmi(void)
{
	event_hook = count_nmis;
	wanted_nmis = 1;
	run_code(K64, nmi_code);
	expect("vector", events[0].vector, NMI);
	expect("error code", events[0].error, NONE);
	expect("stack", events[0].top, (u64)(ist_stack2 + STACK_SIZE));
	expect("the number of NMIs", count_of(NMI), 1);
}

static void nest(struct frame *frame)
{
	if (frame->vector != NMI)
		return;
	deepest = depth >= deepest ? depth + 1 : deepest;
	if (count_of(NMI) == 1) {
		depth++;
		send_nmi();
		send_nmi();
		depth--;
	}
	frame->rax = count_of(NMI) >= wanted_nmis;
}

/* Two more NMIs in the handler of the first: one is kept until its IRET, the other is lost. */
static void nmi_blocks_nmi(void)
{
	event_hook = nest;
	wanted_nmis = 2;
	depth = deepest = 0;
	run_code(K64, nmi_code);
	expect("the number of NMIs", count_of(NMI), 2);
	expect("NMIs inside of NMIs", deepest, 1);
}

/* The IRET of an exception inside of the handler lets NMIs in again. */
static void nest_exception(struct frame *frame)
{
	if (frame->vector != NMI)
		return;
	deepest = depth >= deepest ? depth + 1 : deepest;
	if (count_of(NMI) == 1) {
		depth++;
		send_nmi();
		__asm__ volatile("int $0x90");
		for (int i = 0; i < 100; i++)
			__asm__ volatile("pause");
		depth--;
	}
	frame->rax = count_of(NMI) >= wanted_nmis;
}

static void nmi_after_inner_iret(void)
{
	event_hook = nest_exception;
	own_idt[NMI].ist = 0;
	wanted_nmis = 2;
	depth = deepest = 0;
	run_code(K64, nmi_code);
	expect("the number of NMIs", count_of(NMI), 2);
	expect("NMIs inside of NMIs", deepest, 2);
}

/* An NMI does not care for IF. */
static void nmi_in_user_mode(void)
{
	event_hook = count_nmis;
	wanted_nmis = 1;
	*table_entry(read_cr3(), APIC, 4, false) |= PT_USER;
	*table_entry(read_cr3(), APIC, 3, false) |= PT_USER;
	*table_entry(read_cr3(), APIC, 2, false) |= PT_USER;
	invlpg(APIC);
	run_code(U64, nmi_code);
	expect("the number of NMIs", count_of(NMI), 1);
	expect("CS", events[0].cs, S_UCODE);
	expect("stack", events[0].top, (u64)(ist_stack2 + STACK_SIZE));
	*table_entry(read_cr3(), APIC, 2, false) &= ~PT_USER;
	invlpg(APIC);
}

static const struct test tests[] = {
	RUN_EXACT(absent_gate_of_exception) RUN_EXACT(absent_gate_of_int) RUN_EXACT(type_of_gate)
	RUN_EXACT(type_of_gate_of_int) RUN_EXACT(dpl_before_presence) RUN_EXACT(beyond_the_idt) RUN(selector_of_gate)
	RUN_EXACT(selector_of_gate_of_exception)
	RUN(double_fault) RUN(double_fault_bad_selector)
	RUN(double_fault_beyond_the_idt) RUN(double_fault_of_page_faults) RUN(double_fault_page_fault_first) RUN(page_fault_inside)
	RUN_EXACT(tss_too_short) RUN(tss_just_long_enough) RUN_EXACT(stack_not_canonical) RUN(alignment)
	RUN(ist_at_the_same_level) RUN(selectors_inside) RUN(nmi) RUN(nmi_blocks_nmi) RUN(nmi_after_inner_iret)
	RUN(nmi_in_user_mode)
};
const struct group nested_group = { tests, ARRAY_SIZE(tests) };
