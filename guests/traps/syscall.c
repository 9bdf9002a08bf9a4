/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ways between privilege levels: SYSCALL, SYSENTER and back, call gates, far returns, IRET, SWAPGS. */
#include "traps.h"

#define GATE_CALL 0x8c
#define GATE_CALL_DPL3 0xec

static void no_sce(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1UL);
}

static void no_sysenter(void)
{
	wrmsr(MSR_SYSENTER_CS, 3);
}

static void no_sysexit(void)
{
	wrmsr(MSR_SYSENTER_CS, 0);
}

extern const u8 gate_target[], far_target[];

/* A 64-bit call gate in S_SPARE. */
static void call_gate(u64 offset, u16 selector, u8 type)
{
	own_gdt[S_SPARE / 8] = (offset & 0xffff) | (u64)selector << 16 | (u64)type << 40 | (offset >> 16 & 0xffff) << 48;
	own_gdt[S_SPARE / 8 + 1] = offset >> 32;
}

static void good_gate(void)
{
	call_gate((u64)gate_target, S_KCODE, GATE_CALL_DPL3);
}

static void kernel_gate(void)
{
	call_gate((u64)gate_target, S_KCODE, GATE_CALL);
}

static void absent_gate(void)
{
	call_gate((u64)gate_target, S_KCODE, 0x6c);
}

static void null_gate(void)
{
	call_gate((u64)gate_target, 0, GATE_CALL_DPL3);
}

static void data_gate(void)
{
	call_gate((u64)gate_target, S_KDATA, GATE_CALL_DPL3);
}

static void absent_code_gate(void)
{
	call_gate((u64)gate_target, S_ABSENT_CODE, GATE_CALL_DPL3);
}

static void compat_gate(void)
{
	call_gate((u64)gate_target, S_KCODE32, GATE_CALL_DPL3);
}

static void long_type_gate(void)
{
	call_gate((u64)gate_target, S_KCODE, GATE_CALL_DPL3);
	own_gdt[S_SPARE / 8 + 1] |= 0x1fUL << 40;
}

#define FAR_CALL "movl $0x6b, case_data + 4\nmovl $0, case_data"

#define CALLS(X, EXACT)                                                                            \
	X(ud_syscall_without_sce, U64, no_sce, "", "syscall", "", UD, NONE, AT)                      \
	EXACT(ud_syscall_compat, U32, NULL, "", "syscall", "", UD, NONE, AT)                         \
	X(ud_sysret_without_sce, K64, no_sce, "", "sysretl", "", UD, NONE, AT)                       \
	EXACT(gp_sysenter_null, U64, no_sysenter, "", "sysenter", "", GP, 0, AT)                     \
	EXACT(gp_sysexit_null, K64, no_sysexit, "", "sysexit", "", GP, 0, AT)                       \
	X(gate_dpl, U64, kernel_gate, FAR_CALL, "lcalll *case_data", "", GP, 0x68, AT)               \
	X(gate_absent, U64, absent_gate, FAR_CALL, "lcalll *case_data", "", NP, 0x68, AT)            \
	X(gate_null, U64, null_gate, FAR_CALL, "lcalll *case_data", "", GP, 0, AT)                   \
	X(gate_data, U64, data_gate, FAR_CALL, "lcalll *case_data", "", GP, 0x10, AT)                \
	X(gate_absent_code, U64, absent_code_gate, FAR_CALL, "lcalll *case_data", "", NP, 0x80, AT)  \
	X(gate_to_compat, U64, compat_gate, FAR_CALL, "lcalll *case_data", "", GP, 0x38, AT)         \
	EXACT(gate_high_type, U64, long_type_gate, FAR_CALL, "lcalll *case_data", "", GP, 0x68, AT)  \
	X(gate_jump_to_inner, U64, good_gate, FAR_CALL, "ljmpl *case_data", "", GP, 0x08, AT)

CALLS(TEXT, TEXT)

/* SYSCALL: RCX = next RIP, R11 = RFLAGS without RF, flags masked, CS and SS from STAR, RSP unchanged. */
CODE64(syscall_code, "stc\nstd\nsyscall" LABEL("syscall_back") "int $0x81");
CODE64(syscall_entry, "nop");
extern const u8 syscall_back[];

static void syscall_state(void)
{
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_FMASK, FLAG_DF | FLAG_IF | FLAG_NT | FLAG_AC);
	case_flags = FLAG_IF;
	run_code(U64, syscall_code);
	if (!expect_event(0, DONE, NONE, syscall_entry + 3))
		return;
	expect("RCX", events[0].rcx, (u64)syscall_back);
	expect("R11", events[0].r11 & (FLAG_DF | FLAG_IF | FLAG_CF | FLAG_RF), FLAG_DF | FLAG_IF | FLAG_CF);
	expect("masked flags", events[0].rflags & (FLAG_DF | FLAG_IF), 0);
	expect_exact("CF", events[0].rflags & FLAG_CF, FLAG_CF);
	expect("CS", events[0].cs, S_KCODE);
	expect("SS", events[0].ss, S_KDATA);
	expect("RSP", events[0].rsp, (u64)(case_stack + STACK_SIZE - 256));
}

/* SYSRET to 64-bit and to compatibility mode: RIP from RCX, RFLAGS from R11. The stack is the caller's own. */
CODE64(sysretq_code, "movl $sysret_to, %ecx\nmovl $0x4202, %r11d\nsysretq");
CODE64(sysretl_code, "movl $sysret_to, %ecx\nmovl $0x4202, %r11d\nsysretl");
CODE64(sysret_to, "nop");

static void sysret_to_user(void)
{
	const u8 *const codes[] = { sysretq_code, sysretl_code };
	const u64 cs[] = { S_UCODE, S_UCODE32 };

	for (int i = 0; i < 2; i++) {
		run_code(K64, codes[i]);
		if (!expect_event(0, DONE, NONE, sysret_to + 3))
			return;
		expect("CS", events[0].cs, cs[i]);
		expect("SS", events[0].ss, S_UDATA);
		expect("RFLAGS", events[0].rflags & (FLAG_IF | FLAG_NT | FLAG_RF), FLAG_IF | FLAG_NT);
	}
}

/* There and back: a loop of calls that the kernel answers. */
CODE64(syscall_loop, "movl $100, %ebx\n1: movl %ebx, %eax\nsyscall\naddq %rax, %rdx\ndecl %ebx\njnz 1b");
CODE64(syscall_answer, "leaq (%rax, %rax, 2), %rax\nsysretq");

static void syscall_there_and_back(void)
{
	wrmsr(MSR_LSTAR, (u64)syscall_answer);
	run_code(U64, syscall_loop);
	expect("vector", events[0].vector, DONE);
	expect("CS", events[0].cs, S_UCODE);
	expect("RDX", events[0].rdx, 3 * 100 * 101 / 2);
}

/* SYSENTER: RSP and RIP from MSRs, IF and VM cleared; SYSEXIT back to both modes. Needs an Intel CPU. */
CODE64(sysenter_code, "sysenter");
CODE32(sysenter32_code, "sysenter");
CODE64(sysenter_entry, "nop");
CODE64(sysexit_code, "movl $sysret_to, %edx\nmovl $case_stack + 512, %ecx\nsysexit");
CODE64(sysexitq_code, "movl $sysret_to, %edx\nmovl $case_stack + 512, %ecx\nsysexitq");

static void sysenter_state(void)
{
	wrmsr(MSR_SYSENTER_EIP, (u64)sysenter_entry);
	case_flags = FLAG_IF;
	for (int i = 0; i < 2; i++) {
		run_code(i ? U32 : U64, i ? sysenter32_code : sysenter_code);
		if (!expect_event(0, DONE, NONE, sysenter_entry + 3))
			return;
		expect("CS", events[0].cs, S_KCODE);
		expect("SS", events[0].ss, S_KDATA);
		expect("RSP", events[0].rsp, (u64)(rsp0_stack + STACK_SIZE));
		expect("IF", events[0].rflags & FLAG_IF, 0);
	}
}

static void sysexit_state(void)
{
	for (int i = 0; i < 2; i++) {
		run_code(K64, i ? sysexitq_code : sysexit_code);
		if (!expect_event(0, DONE, NONE, sysret_to + 3))
			return;
		expect("CS", events[0].cs, i ? S_UCODE : S_UCODE32);
		expect("SS", events[0].ss, i ? 0x33 : S_UDATA);
		expect("RSP", events[0].rsp, (u64)(case_stack + 512));
	}
}

/* A 64-bit call gate to CPL 0: RSP0, and SS RSP CS RIP pushed; RETF goes back. SS is null inside. */
CODE64(call_gate_code, "movl $0x6b, case_data + 4\nlcalll *case_data" LABEL("gate_back") "nop");
CODE64(gate_target, "movl %ss, %eax\nmovq %rsp, %rdx\nmovq (%rsp), %rcx\nlretq");
extern const u8 gate_back[];

static void gate_there_and_back(void)
{
	good_gate();
	run_code(U64, call_gate_code);
	if (!expect_event(0, DONE, NONE, gate_back + 3))
		return;
	expect("SS inside", events[0].rax, 0);
	expect("RSP inside", events[0].rdx, (u64)(rsp0_stack + STACK_SIZE) - 32);
	expect("RIP pushed", events[0].rcx, (u64)gate_back);
	expect("CS after", events[0].cs, S_UCODE);
	expect("SS after", events[0].ss, S_UDATA);
	expect("RSP after", events[0].rsp, (u64)(case_stack + STACK_SIZE - 256));
}

/* The same at CPL 0: no other stack, CS and RIP pushed. From compatibility mode a gate leads to 64-bit code too. */
static void gate_same_level(void)
{
	good_gate();
	run_code(K64, call_gate_code);
	if (!expect_event(0, DONE, NONE, gate_back + 3))
		return;
	expect("RSP inside", events[0].rdx, (u64)(case_stack + STACK_SIZE - 256) - 16);
}

CODE32(gate32_code, "lcall $0x6b, $0" LABEL("gate32_back") "nop");
extern const u8 gate32_back[];

static void gate_from_compat(void)
{
	good_gate();
	run_code(U32, gate32_code);
	if (!expect_event(0, DONE, NONE, gate32_back + 3))
		return;
	expect("CS after", events[0].cs, S_UCODE32);
	expect("RIP pushed", events[0].rcx, (u64)gate32_back);
}

/* Far returns and IRET outwards: data segments that the outer level may not use become null. */
CODE64(lret_out, "movl $0x10, %eax\nmovl %eax, %ds\nmovl $0x23, %eax\nmovl %eax, %es\npushq $0x23\npushq $case_stack + 512\n"
	"pushq $0x2b\npushq $out_code\nlretq");
CODE64(iret_out, "movl $0x10, %eax\nmovl %eax, %ds\nmovl $0x23, %eax\nmovl %eax, %es\npushq $0x23\npushq $case_stack + 512\n"
	"pushq $2\npushq $0x2b\npushq $out_code\niretq");
CODE64(out_code, "movl %ds, %eax\nmovl %es, %ecx");

static void return_to_outer(void)
{
	const u8 *const codes[] = { lret_out, iret_out };

	for (int i = 0; i < 2; i++) {
		run_code(K64, codes[i]);
		if (!expect_event(0, DONE, NONE, out_code + 6))
			return;
		expect("CS", events[0].cs, S_UCODE);
		expect("RSP", events[0].rsp, (u64)(case_stack + 512));
		expect("DS", events[0].rax, 0);
		expect("ES", events[0].rcx, S_UDATA);
	}
}

/* IRETQ at the same level pops SS and RSP too in 64-bit mode; IRETD and IRET take smaller words. */
CODE64(iretq_same, "movl $0x10, %eax\npushq %rax\npushq $case_stack + 512\npushq $0x202\npushq $8\npushq $out_code\niretq");
CODE64(iretl_same, "subq $20, %rsp\nmovl $out_code, (%rsp)\nmovl $8, 4(%rsp)\nmovl $0x202, 8(%rsp)\n"
	"movl $case_stack + 512, 12(%rsp)\nmovl $0x10, 16(%rsp)\niretl");

static void iret_same_level(void)
{
	const u8 *const codes[] = { iretq_same, iretl_same };

	for (int i = 0; i < 2; i++) {
		run_code(K64, codes[i]);
		if (!expect_event(0, DONE, NONE, out_code + 6))
			return;
		expect("RSP", events[0].rsp, (u64)(case_stack + 512));
		expect("IF", events[0].rflags & FLAG_IF, FLAG_IF);
	}
}

/* IRET at CPL 3 with IOPL 0 changes neither IF nor IOPL. */
CODE64(iret_user, "pushq $0x23\npushq $case_stack + 512\npushq $0x3202\npushq $0x2b\npushq $out_code\niretq");

static void iret_flags_at_cpl3(void)
{
	run_code(U64, iret_user);
	expect("IF and IOPL", events[0].rflags & (FLAG_IF | FLAG_IOPL3), 0);
}

/* SWAPGS exchanges the base; loading GS at CPL 0 clears it; MSRs see all of it. */
CODE64(swapgs_code, "swapgs\nmovq %gs:0, %rax\nswapgs\nmovq %gs:0, %rcx");

static void swapgs_kernel(void)
{
	((u64 *)case_data)[0] = 0x1111;
	((u64 *)case_data)[8] = 0x2222;
	wrmsr(MSR_GS_BASE, (u64)case_data);
	wrmsr(MSR_KERNEL_GS_BASE, (u64)case_data + 64);
	run_code(K64, swapgs_code);
	expect("GS:0 after SWAPGS", events[0].rax, 0x2222);
	expect("GS:0 after another", events[0].rcx, 0x1111);
	wrmsr(MSR_GS_BASE, (u64)case_data);
	expect("KERNEL_GS_BASE", rdmsr(MSR_KERNEL_GS_BASE), (u64)case_data + 64);
}

/* Flags that stay behind: IOPL 3 in a caller of SYSCALL must not make later code at CPL 3 privileged. */
CODE64(cli_code, "cli");

static void iopl_of_an_earlier_syscall(void)
{
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_FMASK, FLAG_IOPL3);
	case_flags = FLAG_IOPL3;
	run_code(U64, syscall_code);
	case_flags = 0;
	run_code(U64, cli_code);
	expect_event(0, GP, 0, cli_code);
}

static const struct test tests[] = {
	CALLS(ROW, EXACT_ROW) RUN(syscall_state) RUN(sysret_to_user) RUN(syscall_there_and_back) RUN_EXACT(sysenter_state)
	RUN_EXACT(sysexit_state) RUN(gate_there_and_back) RUN(gate_same_level) RUN(gate_from_compat) RUN(return_to_outer)
	RUN(iret_same_level) RUN(iret_flags_at_cpl3) RUN(swapgs_kernel) RUN(iopl_of_an_earlier_syscall)
};
const struct group syscall_group = { tests, ARRAY_SIZE(tests) };
