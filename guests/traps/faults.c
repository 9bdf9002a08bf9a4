/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exceptions that an instruction raises by itself, and INT n. Left out, because neither Unicorn nor
 * QEMU's TCG has them: #AC, #XM, #MF at the next x87 instruction but FWAIT, #GP of LDMXCSR and of
 * SSE operands that are not aligned, segment limits, LOCK where it is not allowed.
 */
#include "traps.h"

#define BOUND_TABLE "movl $case_data, %ebx\nmovl $10, (%ebx)\nmovl $20, 4(%ebx)\n"

static void task_switched(void)
{
	set_cr0(get_cr0() | CR0_TS);
}

static void emulated_fpu(void)
{
	set_cr0((get_cr0() | CR0_EM) & ~CR0_MP);
}

static void task_switched_no_mp(void)
{
	set_cr0((get_cr0() | CR0_TS) & ~CR0_MP);
}

static void no_osfxsr(void)
{
	set_cr4(get_cr4() & ~(1UL << 9));
}

static void extensions(void)
{
	set_cr4(get_cr4() | CR4_DE);
}

#define PENDING_MF "fninit\nmovw $0x37b, case_data\nfldcw case_data\nfld1\nfldz\nfdivrp\n"
#define BAD_VA "movabsq $0x800000000000, %rbx\n"

#define FAULTS(X, EXACT)                                                                                   \
	X(de_zero, K64, NULL, "movl $5, %eax", "divl %ecx", "", DE, NONE, AT)                                \
	X(de_quotient, K64, NULL, "movl $2, %edx\nmovl $2, %ecx", "divl %ecx", "", DE, NONE, AT)               \
	X(de_idiv_minimum, K64, NULL, "movl $0x80000000, %eax\ncltd\nmovl $-1, %ecx", "idivl %ecx", "", DE, NONE, AT) \
	X(de_byte, U64, NULL, "movw $0x1000, %ax\nmovb $1, %cl", "divb %cl", "", DE, NONE, AT)                \
	X(de_quad, U64, NULL, "movq $1, %rdx\nmovq $1, %rcx", "divq %rcx", "", DE, NONE, AT)                  \
	X(de_compat, U32, NULL, "xorl %ecx, %ecx", "idivl %ecx", "", DE, NONE, AT)                             \
	X(de_aam, U32, NULL, "", ".byte 0xd4, 0", "", DE, NONE, AT)                                            \
	X(bp, K64, NULL, "nop", "int3", "", BP, NONE, NEXT)                                                    \
	X(bp_user, U64, NULL, "nop", "int3", "", BP, NONE, NEXT)                                               \
	X(bp_as_int_n, U64, NULL, "nop", ".byte 0xcd, 3", "", BP, NONE, NEXT)                                  \
	X(bp_compat, U32, NULL, "", "int3", "", BP, NONE, NEXT)                                                \
	X(of, U32, NULL, "movl $0x7fffffff, %eax\naddl $1, %eax", "into", "", OF, NONE, NEXT)                   \
	X(of_not, U32, NULL, "xorl %eax, %eax\ninto", "int $0x81", "", DONE, NONE, NEXT)                        \
	X(of_kernel, K32, NULL, "movl $0x7fffffff, %eax\naddl $1, %eax", "into", "", OF, NONE, NEXT)            \
	X(of_64, K64, NULL, "", ".byte 0xce", "", UD, NONE, AT)                                                \
	X(br_above, U32, NULL, BOUND_TABLE "movl $21, %eax", "bound %eax, (%ebx)", "", BR, NONE, AT)            \
	X(br_below, U32, NULL, BOUND_TABLE "movl $9, %eax", "bound %eax, (%ebx)", "", BR, NONE, AT)             \
	X(br_signed, U32, NULL, BOUND_TABLE "movl $-1, %eax", "bound %eax, (%ebx)", "", BR, NONE, AT)           \
	X(br_not, U32, NULL, BOUND_TABLE "movl $20, %eax\nbound %eax, (%ebx)", "int $0x81", "", DONE, NONE, NEXT) \
	X(br_word, U32, NULL, BOUND_TABLE "movl $20, %eax", "bound %ax, (%ebx)", "", BR, NONE, AT)             \
	X(ud2, K64, NULL, "nop", "ud2", "", UD, NONE, AT)                                                       \
	X(ud2_user, U64, NULL, "nop", "ud2", "", UD, NONE, AT)                                                  \
	X(ud_lock_register, U64, NULL, "", ".byte 0xf0, 0x01, 0xc8", "", UD, NONE, AT)                          \
	X(ud_mov_to_cs, K64, NULL, "movl $8, %eax", ".byte 0x8e, 0xc8", "", UD, NONE, AT)                       \
	X(ud_mov_cr1, K64, NULL, "", ".byte 0x0f, 0x20, 0xc8", "", UD, NONE, AT)                                \
	X(ud_mov_cr5, K64, NULL, "", ".byte 0x0f, 0x22, 0xe8", "", UD, NONE, AT)                                \
	X(ud_dr4_with_de, K64, extensions, "", "movq %db4, %rax", "", UD, NONE, AT)                             \
	X(ud_push_cs_64, U64, NULL, "", ".byte 0x0e", "", UD, NONE, AT)                                         \
	X(ud_pusha_64, U64, NULL, "", ".byte 0x60", "", UD, NONE, AT)                                           \
	X(ud_far_call_64, U64, NULL, "", ".byte 0x9a, 0, 0, 0, 0, 0, 0", "", UD, NONE, AT)                      \
	X(ud_daa_64, U64, NULL, "", ".byte 0x27", "", UD, NONE, AT)                                             \
	X(ud_lea_register, U64, NULL, "", ".byte 0x8d, 0xc0", "", UD, NONE, AT)                                 \
	X(ud_cmpxchg8b_register, U64, NULL, "", ".byte 0x0f, 0xc7, 0xc8", "", UD, NONE, AT)                     \
	X(ud_invlpg_register, K64, NULL, "", ".byte 0x0f, 0x01, 0xff", "", UD, NONE, AT)                        \
	X(ud_sse_without_osfxsr, K64, no_osfxsr, "", "xorps %xmm0, %xmm0", "", UD, NONE, AT)                    \
	X(nm_fpu, U64, task_switched, "", "fld1", "", NM, NONE, AT)                                             \
	X(nm_emulation, U64, emulated_fpu, "", "fld1", "", NM, NONE, AT)                                        \
	X(nm_sse, K64, task_switched, "", "xorps %xmm0, %xmm0", "", NM, NONE, AT)                               \
	X(ud_sse_emulation, K64, emulated_fpu, "", "xorps %xmm0, %xmm0", "", UD, NONE, AT)                      \
	X(nm_wait, K64, task_switched, "", "fwait", "", NM, NONE, AT)                                           \
	X(nm_wait_without_mp, K64, task_switched_no_mp, "fwait", "int $0x81", "", DONE, NONE, NEXT)              \
	X(nm_fxsave, K64, task_switched, "movl $case_data, %ebx", "fxsave (%rbx)", "", NM, NONE, AT)             \
	X(nm_clts, K64, task_switched, "clts\nfld1\nfstp %st(0)", "int $0x81", "", DONE, NONE, NEXT)             \
	X(mf_fwait, U64, NULL, PENDING_MF, "fwait", "", MF, NONE, AT)                                           \
	X(mf_not_by_fnclex, U64, NULL, PENDING_MF "fnclex\nfwait", "int $0x81", "", DONE, NONE, NEXT)            \
	X(gp_fxsave, U64, NULL, "movl $case_data + 8, %ebx", "fxsave (%rbx)", "", GP, 0, AT)                    \
	X(gp_load, U64, NULL, BAD_VA, "movl (%rbx), %eax", "", GP, 0, AT)                                       \
	X(gp_store, K64, NULL, BAD_VA, "movl %eax, (%rbx)", "", GP, 0, AT)                                      \
	X(gp_rep_movs, K64, NULL, BAD_VA "movq %rbx, %rsi\nmovl $case_data, %edi\nmovl $4, %ecx", "rep movsb", "", GP, 0, AT) \
	EXACT(gp_jmp, U64, NULL, BAD_VA, "jmp *%rbx", "", GP, 0, AT)                                              \
	EXACT(gp_jmp_memory, K64, NULL, BAD_VA "movq %rbx, case_data", "jmp *case_data", "", GP, 0, AT)           \
	EXACT(gp_call, U64, NULL, BAD_VA, "call *%rbx", "", GP, 0, AT)                                            \
	EXACT(gp_call_high, K64, NULL, BAD_VA "movq %rbx, %r12", "call *%r12", "", GP, 0, AT)                     \
	EXACT(gp_ret, U64, NULL, BAD_VA "pushq %rbx", "ret", "", GP, 0, AT)                                       \
	EXACT(gp_ret_16, K64, NULL, BAD_VA "subq $16, %rsp\npushq %rbx", "ret $16", "", GP, 0, AT)                \
	EXACT(gp_ret_loop, K64, NULL, BAD_VA "pushq %rbx\npushq $1f\nret\n1:", "ret", "", GP, 0, AT)             \
	EXACT(ss_push, U64, NULL, "movabsq $0x800000000008, %rbx\nmovq %rsp, %rcx\nmovq %rbx, %rsp", "pushq %rax", "", SS, 0, AT)  \
	EXACT(ss_rbp, U64, NULL, "movabsq $0x800000000008, %rbp", "movl (%rbp), %eax", "", SS, 0, AT)           \
	X(pf_read, U64, NULL, "movl $0x800000, %ebx", "movl (%rbx), %eax", "", PF, 5, AT)                        \
	X(pf_write, U64, NULL, "movl $0x800000, %ebx", "movl %eax, (%rbx)", "", PF, 7, AT)                       \
	X(pf_absent, K64, NULL, "movabsq $0x8000000000, %rbx", "movb (%rbx), %al", "", PF, 0, AT)                 \
	EXACT(pf_absent_rmw, K64, NULL, "movabsq $0x8000000000, %rbx", "incb (%rbx)", "", PF, 2, AT)                  \
	X(pf_push, K64, NULL, "movabsq $0x8000000000, %rbx", "pushq (%rbx)", "", PF, 0, AT)                       \
	EXACT(pf_xchg, K64, NULL, "movabsq $0x8000000000, %rbx", "xchgl %eax, (%rbx)", "", PF, 2, AT)                 \
	X(int_n, U64, NULL, "", "int $0x82", "", CALL, NONE, NEXT)                                              \
	X(int_n_kernel, K64, NULL, "", "int $0x40", "", 0x40, NONE, NEXT)                                       \
	X(int_n_compat, U32, NULL, "", "int $0x82", "", CALL, NONE, NEXT)                                       \
	X(int_n_16_bit, U16, NULL, "", "int $0x82", "", CALL, NONE, NEXT)                                       \
	X(int_n_no_error_code, K64, NULL, "", "int $13", "", GP, NONE, NEXT)                                    \
	X(int_n_no_error_code_pf, K64, NULL, "", "int $14", "", PF, NONE, NEXT)                                 \
	EXACT(int_n_dpl, U64, NULL, "", "int $0x40", "", GP, 0x40 * 8 + 2, AT)                                      \
	EXACT(int_n_dpl_exception, U64, NULL, "", "int $14", "", GP, 14 * 8 + 2, AT)                                \
	EXACT(int_n_dpl_nmi, U32, NULL, "", "int $2", "", GP, 2 * 8 + 2, AT)

FAULTS(TEXT, TEXT)

/* A transfer that faults leaves RSP as it was. */
CODE64(bad_call, "movabsq $0x800000000000, %rbx\ncall *%rbx");
CODE64(bad_ret, "movabsq $0x800000000000, %rbx\npushq %rbx\nret $24");

static void stack_after_bad_transfers(void)
{
	u64 rsp = (u64)(case_stack + STACK_SIZE - 256);

	run_code(U64, bad_call);
	expect("RSP after CALL", events[0].rsp, rsp);
	run_code(U64, bad_ret);
	expect("RSP after RET", events[0].rsp, rsp - 8);
}

static const struct test tests[] = { FAULTS(ROW, EXACT_ROW) RUN_EXACT(stack_after_bad_transfers) };
const struct group fault_group = { tests, ARRAY_SIZE(tests) };
