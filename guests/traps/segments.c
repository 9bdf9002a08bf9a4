/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Selectors that must not be loaded: null, beyond the table, of the wrong type or privilege, absent. */
#include "traps.h"

#define LJMP(selector) "movl $0x81cd, case_data\nmovl $case_data, case_data + 16\nmovw $" #selector ", case_data + 20\n"

static void nested_task(void)
{
	case_flags = FLAG_NT;
}

static void table_in_ldt(void)
{
	__asm__ volatile("lldt %w0" : : "r"(S_LDT));
}

static void type_of_spare(u64 descriptor)
{
	own_gdt[S_SPARE / 8] = descriptor;
}

static void absent_tss(void)
{
	set_tss(S_SPARE, (u64)&own_tss, 0x67, 0x09);
}

static void available_tss(void)
{
	set_tss(S_SPARE, (u64)&own_tss, 0x67, 0x89);
}

static void busy_tss(void)
{
	set_tss(S_SPARE, (u64)&own_tss, 0x67, 0x8b);
}

static void absent_ldt(void)
{
	set_tss(S_SPARE, (u64)own_gdt, 31, 0x02);
}

static void ring1_data(void)
{
	type_of_spare(0x00cfb3000000ffff);
}

#define LOAD(segment, selector) "movl $" #selector ", %eax", "movl %eax, %" #segment, ""
#define ROWS(X, EXACT)                                                                                   \
	X(ds_null, U64, NULL, "movl $3, %eax\nmovl %eax, %ds\nmovl %eax, %es\nmovl %eax, %fs", "int $0x81", "", DONE, NONE, NEXT) \
	X(ds_beyond, K64, NULL, LOAD(ds, 0x200), GP, 0x200, AT)                                             \
	X(ds_beyond_rpl, U64, NULL, LOAD(ds, 0x203), GP, 0x200, AT)                                         \
	X(ds_ldt_null, U64, NULL, LOAD(ds, 0x17), GP, 0x14, AT)                                             \
	X(ds_ldt, K64, table_in_ldt, "movl $0x14, %eax\nmovl %eax, %ds", "int $0x81", "", DONE, NONE, NEXT)  \
	X(ds_ldt_beyond, K64, table_in_ldt, LOAD(ds, 0x24), GP, 0x24, AT)                                   \
	X(ds_kernel, U64, NULL, LOAD(ds, 0x10), GP, 0x10, AT)                                               \
	X(ds_kernel_compat, U32, NULL, LOAD(ds, 0x10), GP, 0x10, AT)                                        \
	X(ds_rpl, K64, NULL, LOAD(ds, 0x13), GP, 0x10, AT)                                                  \
	X(ds_ring_1, U64, ring1_data, LOAD(es, 0x69), GP, 0x68, AT)                                         \
	X(ds_execute_only, K64, NULL, LOAD(ds, 0x90), GP, 0x90, AT)                                         \
	X(ds_readable_code, K64, NULL, "movl $0x08, %eax\nmovl %eax, %ds", "int $0x81", "", DONE, NONE, NEXT) \
	X(ds_conforming_code, U64, NULL, "movl $0x9b, %eax\nmovl %eax, %ds", "int $0x81", "", DONE, NONE, NEXT) \
	X(ds_absent, K64, NULL, LOAD(ds, 0x78), NP, 0x78, AT)                                               \
	X(ds_system, K64, NULL, LOAD(ds, 0x40), GP, 0x40, AT)                                               \
	X(es_absent, K32, NULL, LOAD(es, 0x78), NP, 0x78, AT)                                               \
	X(fs_beyond, U64, NULL, LOAD(fs, 0x203), GP, 0x200, AT)                                             \
	X(gs_absent, K64, NULL, LOAD(gs, 0x78), NP, 0x78, AT)                                               \
	X(pop_fs, K64, NULL, "pushq $0x78", "popq %fs", "", NP, 0x78, AT)                                   \
	X(lfs, K64, NULL, LJMP(0x78), "lfs case_data + 16, %eax", "", NP, 0x78, AT)                          \
	X(lss_null_64, K64, NULL, "movq %rsp, case_data\nmovw $0, case_data + 8\nlssq case_data, %rsp", "int $0x81", "", DONE, NONE, NEXT) \
	X(ss_null_user, U64, NULL, LOAD(ss, 3), GP, 0, AT)                                                  \
	X(ss_null_compat, U32, NULL, LOAD(ss, 0), GP, 0, AT)                                                \
	X(ss_rpl, K64, NULL, LOAD(ss, 0x23), GP, 0x20, AT)                                                  \
	X(ss_kernel, U64, NULL, LOAD(ss, 0x10), GP, 0x10, AT)                                               \
	X(ss_read_only, K64, NULL, LOAD(ss, 0x88), GP, 0x88, AT)                                            \
	X(ss_code, K64, NULL, LOAD(ss, 0x08), GP, 0x08, AT)                                                 \
	X(ss_absent, K64, NULL, LOAD(ss, 0x78), SS, 0x78, AT)                                               \
	X(ss_beyond, K64, NULL, LOAD(ss, 0x200), GP, 0x200, AT)                                             \
	X(lldt_null, K64, NULL, "xorl %eax, %eax\nlldt %ax", "int $0x81", "", DONE, NONE, NEXT)              \
	X(lldt_type, K64, NULL, "movl $0x10, %eax", "lldt %ax", "", GP, 0x10, AT)                           \
	X(lldt_tss, K64, NULL, "movl $0x40, %eax", "lldt %ax", "", GP, 0x40, AT)                            \
	X(lldt_absent, K64, absent_ldt, "movl $0x68, %eax", "lldt %ax", "", NP, 0x68, AT)                   \
	X(lldt_in_ldt, K64, NULL, "movl $0x54, %eax", "lldt %ax", "", GP, 0x54, AT)                         \
	X(lldt_beyond, K64, NULL, "movl $0x200, %eax", "lldt %ax", "", GP, 0x200, AT)                       \
	EXACT(ltr_null, K64, NULL, "xorl %eax, %eax", "ltr %ax", "", GP, 0, AT)                                 \
	X(ltr_busy, K64, busy_tss, "movl $0x68, %eax", "ltr %ax", "", GP, 0x68, AT)                         \
	X(ltr_current, K64, NULL, "movl $0x40, %eax", "ltr %ax", "", GP, 0x40, AT)                          \
	X(ltr_absent, K64, absent_tss, "movl $0x68, %eax", "ltr %ax", "", NP, 0x68, AT)                     \
	X(ltr_type, K64, NULL, "movl $0x50, %eax", "ltr %ax", "", GP, 0x50, AT)                             \
	X(ltr_good, K64, available_tss, "movl $0x68, %eax\nltr %ax", "int $0x81", "", DONE, NONE, NEXT)      \
	X(jump_null, K64, NULL, LJMP(0), "ljmpl *case_data + 16", "", GP, 0, AT)                             \
	X(jump_null_rpl, U64, NULL, LJMP(3), "ljmpl *case_data + 16", "", GP, 0, AT)                         \
	X(jump_beyond, K64, NULL, LJMP(0x200), "ljmpl *case_data + 16", "", GP, 0x200, AT)                   \
	X(jump_data, K64, NULL, LJMP(0x10), "ljmpl *case_data + 16", "", GP, 0x10, AT)                       \
	X(jump_absent, K64, NULL, LJMP(0x80), "ljmpl *case_data + 16", "", NP, 0x80, AT)                     \
	X(jump_kernel, U64, NULL, LJMP(0x08), "ljmpl *case_data + 16", "", GP, 0x08, AT)                     \
	X(jump_user, K64, NULL, LJMP(0x2b), "ljmpl *case_data + 16", "", GP, 0x28, AT)                       \
	X(jump_rpl, K64, NULL, LJMP(0x0b), "ljmpl *case_data + 16", "", GP, 0x08, AT)                        \
	X(jump_compat, U32, NULL, "", "ljmp $0x13, $0", "", GP, 0x10, AT)                                    \
	X(jump_tss, K64, available_tss, LJMP(0x68), "ljmpl *case_data + 16", "", GP, 0x68, AT)               \
	X(call_data, K64, NULL, LJMP(0x10), "lcalll *case_data + 16", "", GP, 0x10, AT)                      \
	X(call_tss, U64, available_tss, LJMP(0x68), "lcalll *case_data + 16", "", GP, 0x68, AT)              \
	X(call_absent, K64, NULL, LJMP(0x80), "lcalll *case_data + 16", "", NP, 0x80, AT)                    \
	X(ret_null, K64, NULL, "pushq $0\npushq $0", "lretq", "", GP, 0, AT)                                 \
	X(ret_inner, U64, NULL, "pushq $8\npushq $0", "lretq", "", GP, 8, AT)                                \
	X(ret_absent, K64, NULL, "pushq $0x80\npushq $0", "lretq", "", NP, 0x80, AT)                         \
	X(ret_data, K64, NULL, "pushq $0x10\npushq $0", "lretq", "", GP, 0x10, AT)                           \
	X(iret_null, K64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $0\npushq $0", "iretq", "", GP, 0, AT)  \
	X(iret_inner, U64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $8\npushq $0", "iretq", "", GP, 8, AT) \
	X(iret_absent, K64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $0x80\npushq $0", "iretq", "", NP, 0x80, AT) \
	X(iret_data, K64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $0x10\npushq $0", "iretq", "", GP, 0x10, AT) \
	X(iret_beyond, K64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $0x200\npushq $0", "iretq", "", GP, 0x200, AT) \
	X(iret_ss_rpl, K64, NULL, "pushq $0x10\npushq %rsp\npushq $2\npushq $0x2b\npushq $0", "iretq", "", GP, 0x10, AT) \
	X(iret_ss_null_compat, K64, NULL, "pushq $0\npushq %rsp\npushq $2\npushq $0x1b\npushq $0", "iretq", "", GP, 0, AT) \
	X(iret_ss_null_user, K64, NULL, "pushq $3\npushq %rsp\npushq $2\npushq $0x2b\npushq $0", "iretq", "", GP, 0, AT) \
	X(iret_ss_code, K64, NULL, "pushq $0x2b\npushq %rsp\npushq $2\npushq $0x2b\npushq $0", "iretq", "", GP, 0x28, AT) \
	X(iret_nested_task, K64, nested_task, "pushq $0x10\npushq %rsp\npushq $2\npushq $8\npushq $0", "iretq", "", GP, 0, AT)

ROWS(TEXT, TEXT)

static const struct test tests[] = { ROWS(ROW, EXACT_ROW) };
const struct group segment_group = { tests, ARRAY_SIZE(tests) };
