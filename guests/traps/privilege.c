/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What needs CPL 0, IOPL or the TSS's bitmap; reserved bits of control registers and MSRs. */
#include "traps.h"

#define PORT 0xe0 /* pc-testdev or nothing: reading has no effect */
#define CR(value) "movabsq $" #value ", %rax"
#define MSR(index, low, high) "movl $" #index ", %ecx\nmovl $" #low ", %eax\nmovl $" #high ", %edx"

static void iopl3(void)
{
	case_flags = FLAG_IOPL3 | FLAG_IF;
}

static void iopl3_off(void)
{
	case_flags = FLAG_IOPL3;
}

static void allow(u16 port)
{
	own_tss.iomap[port / 8] &= (u8) ~(1 << port % 8);
}

static void one_port(void)
{
	allow(PORT);
}

static void four_ports(void)
{
	for (u16 port = PORT; port < PORT + 4; port++)
		allow(port);
}

/* 0xe6..0xe9 lie in two bytes of the map. */
static void across_bytes(void)
{
	for (u16 port = 0xe6; port < 0xea; port++)
		allow(port);
}

static void across_bytes_but_last(void)
{
	for (u16 port = 0xe6; port < 0xe9; port++)
		allow(port);
}

static void reload_tss(u32 limit)
{
	set_tss(S_TSS, (u64)&own_tss, limit, 0x89);
	load_tr(S_TSS);
}

/* The map's byte is the last within the limit: the CPU reads two. */
static void map_to_the_limit(void)
{
	four_ports();
	reload_tss(offsetof(struct tss, iomap) + PORT / 8);
}

static void map_one_beyond(void)
{
	four_ports();
	reload_tss(offsetof(struct tss, iomap) + PORT / 8 + 1);
}

static void map_base_beyond(void)
{
	memset(own_tss.iomap, 0, sizeof(own_tss.iomap));
	own_tss.iomap_base = 0xffff;
}

static void no_map(void)
{
	memset(own_tss.iomap, 0, sizeof(own_tss.iomap));
	reload_tss(0x67);
}

static void tsd(void)
{
	set_cr4(get_cr4() | CR4_TSD);
}

#define PRIVILEGES(X, EXACT)                                                                               \
	X(hlt, U64, NULL, "", "hlt", "", GP, 0, AT)                                                          \
	X(hlt_iopl, U64, iopl3, "", "hlt", "", GP, 0, AT)                                                    \
	X(clts, U64, NULL, "", "clts", "", GP, 0, AT)                                                        \
	X(invd, U64, NULL, "", "invd", "", GP, 0, AT)                                                        \
	X(wbinvd, U64, NULL, "", "wbinvd", "", GP, 0, AT)                                                    \
	X(invlpg, U64, NULL, "", "invlpg case_data", "", GP, 0, AT)                                          \
	X(lgdt, U64, NULL, "", "lgdt case_data", "", GP, 0, AT)                                              \
	X(lidt, U64, NULL, "", "lidt case_data", "", GP, 0, AT)                                              \
	X(lldt, U64, NULL, "xorl %eax, %eax", "lldt %ax", "", GP, 0, AT)                                     \
	X(ltr, U64, NULL, "movl $0x40, %eax", "ltr %ax", "", GP, 0, AT)                                      \
	X(lmsw, U64, NULL, "movl $0x3b, %eax", "lmsw %ax", "", GP, 0, AT)                                    \
	X(rdmsr_user, U64, NULL, "movl $0x10, %ecx", "rdmsr", "", GP, 0, AT)                                 \
	X(wrmsr_user, U64, NULL, "movl $0x10, %ecx", "wrmsr", "", GP, 0, AT)                                 \
	X(mov_from_cr0, U64, NULL, "", "movq %cr0, %rax", "", GP, 0, AT)                                     \
	X(mov_from_cr3, U64, NULL, "", "movq %cr3, %rax", "", GP, 0, AT)                                     \
	X(mov_to_cr2, U64, NULL, "", "movq %rax, %cr2", "", GP, 0, AT)                                       \
	X(mov_to_cr4, U64, NULL, "", "movq %rax, %cr4", "", GP, 0, AT)                                       \
	X(mov_to_cr8, U64, NULL, "", "movq %rax, %cr8", "", GP, 0, AT)                                       \
	X(mov_from_dr7, U64, NULL, "", "movq %db7, %rax", "", GP, 0, AT)                                     \
	X(mov_to_dr0, U64, NULL, "", "movq %rax, %db0", "", GP, 0, AT)                                       \
	X(swapgs_user, U64, NULL, "", "swapgs", "", GP, 0, AT)                                               \
	X(sysretl_user, U64, NULL, "", "sysretl", "", GP, 0, AT)                                             \
	EXACT(sysexit_user, U64, NULL, "", "sysexit", "", GP, 0, AT)                                             \
	X(hlt_compat, U32, NULL, "", "hlt", "", GP, 0, AT)                                                   \
	X(mov_cr0_compat, U32, NULL, "", "movl %eax, %cr0", "", GP, 0, AT)                                   \
	X(cli_user, U64, NULL, "", "cli", "", GP, 0, AT)                                                     \
	X(sti_user, U64, NULL, "", "sti", "", GP, 0, AT)                                                     \
	X(cli_iopl, U64, iopl3_off, "cli", "int $0x81", "", DONE, NONE, NEXT)                                \
	X(cli_compat, U32, NULL, "", "cli", "", GP, 0, AT)                                                   \
	X(rdtsc_tsd, U64, tsd, "", "rdtsc", "", GP, 0, AT)                                                   \
	X(rdtsc_tsd_kernel, K64, tsd, "rdtsc", "int $0x81", "", DONE, NONE, NEXT)                            \
	X(in_user, U64, NULL, "", "inb $0xe0, %al", "", GP, 0, AT)                                           \
	X(out_user, U64, NULL, "movl $0xe0, %edx", "outb %al, %dx", "", GP, 0, AT)                           \
	X(in_compat, U32, NULL, "movl $0xe0, %edx", "inl %dx, %eax", "", GP, 0, AT)                          \
	X(ins_user, U64, NULL, "movl $0xe0, %edx\nmovl $case_data, %edi", "insb", "", GP, 0, AT)             \
	X(outs_user, U64, NULL, "movl $0xe0, %edx\nmovl $case_data, %esi\nmovl $2, %ecx", "rep outsb", "", GP, 0, AT) \
	X(in_iopl, U64, iopl3, "inb $0xe0, %al", "int $0x81", "", DONE, NONE, NEXT)                          \
	X(in_map, U64, one_port, "inb $0xe0, %al", "int $0x81", "", DONE, NONE, NEXT)                        \
	X(in_map_word, U64, one_port, "", "inw $0xe0, %ax", "", GP, 0, AT)                                   \
	X(in_map_other, U64, one_port, "", "inb $0xe1, %al", "", GP, 0, AT)                                  \
	X(in_map_long, U64, four_ports, "inl $0xe0, %eax", "int $0x81", "", DONE, NONE, NEXT)                \
	X(in_map_long_end, U64, four_ports, "", "inl $0xe1, %eax", "", GP, 0, AT)                            \
	X(in_map_across, U64, across_bytes, "inl $0xe6, %eax", "int $0x81", "", DONE, NONE, NEXT)            \
	X(in_map_across_last, U64, across_bytes_but_last, "", "inl $0xe6, %eax", "", GP, 0, AT)              \
	X(in_map_limit, U64, map_to_the_limit, "", "inb $0xe0, %al", "", GP, 0, AT)                          \
	X(in_map_one_beyond, U64, map_one_beyond, "inb $0xe0, %al", "int $0x81", "", DONE, NONE, NEXT)       \
	X(in_map_base, U64, map_base_beyond, "", "inb $0xe0, %al", "", GP, 0, AT)                            \
	X(in_map_none, U64, no_map, "", "inb $0xe0, %al", "", GP, 0, AT)                                     \
	EXACT(cr0_high, K64, NULL, CR(0x180050033), "movq %rax, %cr0", "", GP, 0, AT)                        \
	EXACT(cr0_pg_without_pe, K64, NULL, CR(0x80050032), "movq %rax, %cr0", "", GP, 0, AT)                \
	EXACT(cr0_nw_without_cd, K64, NULL, CR(0xa0050033), "movq %rax, %cr0", "", GP, 0, AT)                \
	EXACT(cr0_pg_off_in_64_bit, K64, NULL, CR(0x00050033), "movq %rax, %cr0", "", GP, 0, AT)             \
	EXACT(cr4_pae_off, K64, NULL, CR(0x680), "movq %rax, %cr4", "", GP, 0, AT)                               \
	EXACT(cr4_high, K64, NULL, CR(0x1000006a0), "movq %rax, %cr4", "", GP, 0, AT)                        \
	EXACT(cr4_bit_15, K64, NULL, CR(0x86a0), "movq %rax, %cr4", "", GP, 0, AT)                           \
	EXACT(cr4_vmxe, K64, NULL, CR(0x26a0), "movq %rax, %cr4", "", GP, 0, AT)                             \
	EXACT(cr4_la57, K64, NULL, CR(0x16a0), "movq %rax, %cr4", "", GP, 0, AT)                             \
	EXACT(cr3_high, K64, NULL, CR(0x4000000000009000), "movq %rax, %cr3", "", GP, 0, AT)                 \
	EXACT(cr8_high, K64, NULL, CR(0x10), "movq %rax, %cr8", "", GP, 0, AT)                               \
	EXACT(dr7_high, K64, NULL, CR(0x100000400), "movq %rax, %db7", "", GP, 0, AT)                        \
	EXACT(dr6_high, K64, NULL, CR(0x1ffff0ff0), "movq %rax, %db6", "", GP, 0, AT)                        \
	EXACT(efer_reserved, K64, NULL, MSR(0xc0000080, 0xd03, 0), "wrmsr", "", GP, 0, AT)                   \
	EXACT(efer_high, K64, NULL, MSR(0xc0000080, 0xd01, 1), "wrmsr", "", GP, 0, AT)                       \
	EXACT(efer_lme_off, K64, NULL, MSR(0xc0000080, 0xc01, 0), "wrmsr", "", GP, 0, AT)                    \
	EXACT(rdmsr_unknown, K64, NULL, MSR(0x9999, 0, 0), "rdmsr", "", GP, 0, AT)                           \
	EXACT(wrmsr_unknown, K64, NULL, MSR(0x9999, 0, 0), "wrmsr", "", GP, 0, AT)                           \
	EXACT(rdmsr_unknown_high, K64, NULL, MSR(0xc0009999, 0, 0), "rdmsr", "", GP, 0, AT)                  \
	EXACT(rdmsr_x2apic_in_xapic_mode, K64, NULL, MSR(0x802, 0, 0), "rdmsr", "", GP, 0, AT)               \
	EXACT(pat_bad_type, K64, NULL, MSR(0x277, 0x02, 0), "wrmsr", "", GP, 0, AT)                          \
	EXACT(lstar_non_canonical, K64, NULL, MSR(0xc0000082, 0, 0x1000000), "wrmsr", "", GP, 0, AT)            \
	EXACT(fs_base_non_canonical, K64, NULL, MSR(0xc0000100, 0, 0x1000000), "wrmsr", "", GP, 0, AT)          \
	EXACT(gs_base_non_canonical, K64, NULL, MSR(0xc0000101, 0, 0x1000000), "wrmsr", "", GP, 0, AT)          \
	EXACT(kernel_gs_base_non_canonical, K64, NULL, MSR(0xc0000102, 0, 0x1000000), "wrmsr", "", GP, 0, AT)   \
	EXACT(sysenter_eip_non_canonical, K64, NULL, MSR(0x176, 0, 0x1000000), "wrmsr", "", GP, 0, AT)          \
	EXACT(sysenter_esp_non_canonical, K64, NULL, MSR(0x175, 0, 0x1000000), "wrmsr", "", GP, 0, AT)          \
	EXACT(tsc_aux_high, K64, NULL, MSR(0xc0000103, 0, 1), "wrmsr", "", GP, 0, AT)                          \
	EXACT(apic_base_high, K64, NULL, MSR(0x1b, 0xfee00900, 0x1000000), "wrmsr", "", GP, 0, AT)           \
	EXACT(xsetbv_without_osxsave, K64, NULL, "xorl %ecx, %ecx\nxorl %edx, %edx\nmovl $1, %eax", "xsetbv", "", UD, NONE, AT)

PRIVILEGES(TEXT, TEXT)

/* STI and CLI at CPL 3 with IOPL 3 do what they do at CPL 0; POPF changes IF only then, IOPL never. */
CODE64(popf_code, "pushfq\npopq %rax\norl $0x3300, %eax\nandl $~0x100, %eax\npushq %rax\npopfq\npushfq\npopq %rcx");

static void popf_user(void)
{
	run_code(U64, popf_code);
	expect("IF and IOPL after POPF at IOPL 0", events[0].rcx & (FLAG_IF | FLAG_IOPL3), 0);
	case_flags = FLAG_IOPL3;
	run_code(U64, popf_code);
	expect("IF and IOPL after POPF at IOPL 3", events[0].rcx & (FLAG_IF | FLAG_IOPL3), FLAG_IF | FLAG_IOPL3);
	case_flags = 0;
	run_code(K64, popf_code);
	expect("IF and IOPL after POPF at CPL 0", events[0].rcx & (FLAG_IF | FLAG_IOPL3), FLAG_IF | FLAG_IOPL3);
}

/* An interrupt gate clears IF, a trap gate leaves it; both clear TF, NT and RF (SDM vol. 3, 6.12.1.2). */
static u64 flags_inside;

static void note_flags(struct frame *frame)
{
	(void)frame;
	__asm__ volatile("pushfq; popq %0" : "=r"(flags_inside));
}

CODE64(gate_code, "int $0x82");
CODE64(trap_gate_code, "int $0x83");

static void gate_flags(void)
{
	const u64 mask = FLAG_IF | FLAG_TF | FLAG_NT | FLAG_RF;

	event_hook = note_flags;
	max_events = 1;
	case_flags = FLAG_IF | FLAG_NT;
	run_code(U64, gate_code);
	expect("vector", events[0].vector, CALL);
	expect("flags in an interrupt gate", flags_inside & mask, 0);
	run_code(U64, trap_gate_code);
	expect("vector", events[0].vector, CALL_TRAP);
	expect("flags in a trap gate", flags_inside & mask, FLAG_IF);
	expect("saved flags", events[0].rflags & mask, FLAG_IF | FLAG_NT);
}

static const struct test tests[] = { PRIVILEGES(ROW, EXACT_ROW) RUN(popf_user) RUN(gate_flags) };
const struct group privilege_group = { tests, ARRAY_SIZE(tests) };
