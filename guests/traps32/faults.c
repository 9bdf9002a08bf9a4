/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exceptions of instructions and of selectors. */
#include "traps32.h"

#define BOUNDS "movl $case_data, %ebx\nmovl $10, (%ebx)\nmovl $20, 4(%ebx)\n"
#define LOAD(segment, selector) "movl $" #selector ", %eax", "movl %eax, %" #segment, ""
#define TEST_ROWS(tests) { tests, sizeof(tests) / sizeof(tests[0]) }

static void task_switched(void)
{
	write_cr0(read_cr0() | 8);
}

static void emulated(void)
{
	write_cr0(read_cr0() | 4);
}

static void iopl3(void)
{
	case_flags = FLAG_IOPL3;
}

static void one_port(void)
{
	own_tss.map[0xe0 / 8] = 0xfe;
}

static void with_ldt(void)
{
	__asm__ volatile("lldt %w0" : : "r"(S_LDT));
}

static void absent_ldt(void)
{
	set_system(S_LDT, (u32)own_gdt, 31, 0x02);
}

static void absent_tss(void)
{
	set_system(S_TASK, (u32)&task_tss, 0x67, 0x09);
}

#define FAULTS(X, EXACT)                                                                             \
	X(de, K32, NULL, "xorl %ecx, %ecx", "divl %ecx", "", DE, NONE, AT)                              \
	X(de_user, U32, NULL, "movl $1, %edx\nmovl $1, %ecx", "divl %ecx", "", DE, NONE, AT)            \
	X(de_aam, U32, NULL, "", ".byte 0xd4, 0", "", DE, NONE, AT)                                     \
	X(de_16, U16, NULL, "", "divw %cx", "", DE, NONE, AT)                                           \
	X(bp, K32, NULL, "nop", "int3", "", BP, NONE, NEXT)                                             \
	X(bp_user, U32, NULL, "nop", "int3", "", BP, NONE, NEXT)                                        \
	X(bp_16, U16, NULL, "nop", "int3", "", BP, NONE, NEXT)                                          \
	X(of, U32, NULL, "movb $0x7f, %al\nincb %al", "into", "", OF, NONE, NEXT)                       \
	X(of_kernel, K32, NULL, "movb $0x7f, %al\nincb %al", "into", "", OF, NONE, NEXT)                \
	X(of_not, U32, NULL, "xorl %eax, %eax\ninto", "int $0x81", "", DONE, NONE, NEXT)                \
	X(br, U32, NULL, BOUNDS "movl $21, %eax", "bound %eax, (%ebx)", "", BR, NONE, AT)               \
	X(br_not, U32, NULL, BOUNDS "movl $10, %eax\nbound %eax, (%ebx)", "int $0x81", "", DONE, NONE, NEXT) \
	X(ud, U32, NULL, "nop", "ud2", "", UD, NONE, AT)                                                \
	X(ud_lock, U32, NULL, "", "lock\nnop", "", UD, NONE, AT)                                     \
	X(ud_mov_to_cs, K32, NULL, "", ".byte 0x8e, 0xc8", "", UD, NONE, AT)                            \
	X(nm, U32, task_switched, "", "fld1", "", NM, NONE, AT)                                         \
	X(nm_emulation, K32, emulated, "", "fld1", "", NM, NONE, AT)                                    \
	X(int_n, U32, NULL, "", "int $0x82", "", CALL, NONE, NEXT)                                      \
	X(int_n_16, U16, NULL, "nop", "int $0x82", "", CALL, NONE, NEXT)                                \
	X(int_n_dpl, U32, NULL, "", "int $0x40", "", GP, 0x40 * 8 + 2, AT)                              \
	X(int_n_no_error_code, K32, NULL, "", "int $13", "", GP, NONE, NEXT)                            \
	X(hlt, U32, NULL, "", "hlt", "", GP, 0, AT)                                                     \
	X(cli, U32, NULL, "", "cli", "", GP, 0, AT)                                                     \
	X(cli_iopl, U32, iopl3, "cli", "int $0x81", "", DONE, NONE, NEXT)                               \
	X(lgdt, U32, NULL, "", "lgdt case_data", "", GP, 0, AT)                                         \
	X(mov_cr0, U32, NULL, "", "movl %cr0, %eax", "", GP, 0, AT)                                     \
	X(mov_dr7, U32, NULL, "", "movl %dr7, %eax", "", GP, 0, AT)                                     \
	X(rdmsr, U32, NULL, "movl $0x10, %ecx", "rdmsr", "", GP, 0, AT)                                 \
	X(in, U32, NULL, "", "inb $0xe0, %al", "", GP, 0, AT)                                           \
	X(in_map, U32, one_port, "inb $0xe0, %al", "int $0x81", "", DONE, NONE, NEXT)                   \
	X(in_map_word, U32, one_port, "", "inw $0xe0, %ax", "", GP, 0, AT)                              \
	X(in_beyond_map, U32, NULL, "movl $0x8000, %edx", "inb %dx, %al", "", GP, 0, AT)                \
	X(in_iopl, U32, iopl3, "inb $0xe0, %al", "int $0x81", "", DONE, NONE, NEXT)                     \
	X(ds_null, U32, NULL, "xorl %eax, %eax", "movl %eax, %ds\nint $0x81", "", DONE, NONE, NEXT)     \
	X(ds_beyond, K32, NULL, LOAD(ds, 0x200), GP, 0x200, AT)                                         \
	X(ds_kernel, U32, NULL, LOAD(ds, 0x10), GP, 0x10, AT)                                           \
	X(ds_ring_1, U32, NULL, LOAD(ds, 0x79), GP, 0x78, AT)                                           \
	X(ds_execute_only, K32, NULL, LOAD(ds, 0x60), GP, 0x60, AT)                                     \
	X(ds_absent, K32, NULL, LOAD(es, 0x48), NP, 0x48, AT)                                           \
	X(ds_system, K32, NULL, LOAD(es, 0x28), GP, 0x28, AT)                                           \
	X(ds_ldt, K32, with_ldt, "movl $0x14, %eax\nmovl %eax, %es", "int $0x81", "", DONE, NONE, NEXT) \
	X(ds_ldt_null, K32, NULL, LOAD(es, 0x14), GP, 0x14, AT)                                         \
	X(ss_null, K32, NULL, LOAD(ss, 0), GP, 0, AT)                                                   \
	X(ss_rpl, K32, NULL, LOAD(ss, 0x23), GP, 0x20, AT)                                              \
	X(ss_dpl, U32, NULL, LOAD(ss, 0x10), GP, 0x10, AT)                                              \
	X(ss_read_only, K32, NULL, LOAD(ss, 0x58), GP, 0x58, AT)                                        \
	X(ss_absent, K32, NULL, LOAD(ss, 0x48), SS, 0x48, AT)                                           \
	X(pop_es, K32, NULL, "pushl $0\npushl $0x48", "popl %es", "", NP, 0x48, AT)                     \
	X(lds, K32, NULL, "movw $0x48, case_data + 4", "lds case_data, %eax", "", NP, 0x48, AT)         \
	X(lldt_type, K32, NULL, "movl $0x10, %eax", "lldt %ax", "", GP, 0x10, AT)                       \
	X(lldt_absent, K32, absent_ldt, "movl $0x70, %eax", "lldt %ax", "", NP, 0x70, AT)               \
	X(ltr_busy, K32, NULL, "movl $0x28, %eax", "ltr %ax", "", GP, 0x28, AT)                         \
	X(ltr_absent, K32, absent_tss, "movl $0x30, %eax", "ltr %ax", "", NP, 0x30, AT)                 \
	X(jump_null, K32, NULL, "", "ljmp $0, $0", "", GP, 0, AT)                                       \
	X(jump_beyond, K32, NULL, "", "ljmp $0x200, $0", "", GP, 0x200, AT)                             \
	X(jump_data, K32, NULL, "", "ljmp $0x10, $0", "", GP, 0x10, AT)                                 \
	X(jump_absent, K32, NULL, "", "ljmp $0x50, $0", "", NP, 0x50, AT)                               \
	X(jump_inner, U32, NULL, "", "ljmp $0x08, $0", "", GP, 0x08, AT)                                \
	X(jump_outer, K32, NULL, "", "ljmp $0x1b, $0", "", GP, 0x18, AT)                                \
	X(call_data, U32, NULL, "", "lcall $0x23, $0", "", GP, 0x20, AT)                                \
	X(ret_inner, U32, NULL, "pushl $8\npushl $0", "lretl", "", GP, 8, AT)                           \
	X(ret_null, K32, NULL, "pushl $0\npushl $0", "lretl", "", GP, 0, AT)                            \
	X(iret_inner, U32, NULL, "pushl $0\npushl $2\npushl $8\npushl $0", "iretl", "", GP, 8, AT)      \
	X(iret_absent, K32, NULL, "pushl $0\npushl $2\npushl $0x50\npushl $0", "iretl", "", NP, 0x50, AT) \
	X(iret_outer_null_ss, K32, NULL, "pushl $0\npushl $0\npushl $0\npushl $2\npushl $0x1b\npushl $0", "iretl", "", GP, 0, AT) \
	X(iret_outer_ss_rpl, K32, NULL, "pushl $0\npushl $0x10\npushl $0\npushl $2\npushl $0x1b\npushl $0", "iretl", "", GP, 0x10, AT)

FAULTS(TEXT, TEXT)

static const struct test tests[] = { FAULTS(ROW, EXACT_ROW) };
const struct group fault_group = TEST_ROWS(tests);
