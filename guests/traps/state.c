/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The descriptor tables, control and debug registers and MSRs that every case starts from. */
#include "traps.h"

#define GATE_INTERRUPT 0x8e
#define GATE_TRAP 0x8f
#define GATE_DPL3 0x60
#define TSS_AVAILABLE 0x89
#define LDT_TYPE 0x82
#define TSS_LIMIT (sizeof(struct tss) - 1)
#define CR0_START 0x80050033UL
#define CR4_START 0x000006a0UL
#define EFER_START 0x901UL /* NX LME, and SCE for SYSCALL */

extern const u8 event_stubs[];

u64 own_gdt[GDT_ENTRIES] __attribute__((aligned(16)));
struct gate own_idt[256] __attribute__((aligned(16)));
struct tss own_tss __attribute__((aligned(16)));
u8 case_stack[STACK_SIZE] __attribute__((aligned(16)));
u8 rsp0_stack[STACK_SIZE] __attribute__((aligned(16)));
u8 ist_stack1[STACK_SIZE] __attribute__((aligned(16)));
u8 ist_stack2[STACK_SIZE] __attribute__((aligned(16)));
u8 case_data[2 * PAGE_SIZE] __attribute__((aligned(4096)));

static const u64 gdt_start[] = {
	[S_KCODE / 8] = 0x00af9b000000ffff,	  [S_KDATA / 8] = 0x00cf93000000ffff,
	[S_UCODE32 / 8] = 0x00cffb000000ffff,	  [S_UDATA / 8] = 0x00cff3000000ffff,
	[S_UCODE / 8] = 0x00affb000000ffff,	  [S_UCODE / 8 + 1] = 0x00cff3000000ffff,
	[S_KCODE32 / 8] = 0x00cf9b000000ffff,	  [S_UCODE16 / 8] = 0x008ffb000000ffff,
	[S_ABSENT_DATA / 8] = 0x00cf13000000ffff, [S_ABSENT_CODE / 8] = 0x00af1b000000ffff,
	[S_RODATA / 8] = 0x00cf91000000ffff,	  [S_XCODE / 8] = 0x00cf99000000ffff,
	[S_CONFORMING / 8] = 0x00af9f000000ffff,  [S_SMALL / 8] = 0x0040f3000000000f,
	[S_BAD_CODE / 8] = 0x00ef9b000000ffff,
};

u64 stub_of(u8 vector)
{
	return (u64)event_stubs + 32UL * vector;
}

void set_gate(u8 vector, u64 offset, u16 selector, u8 type, u8 ist)
{
	own_idt[vector] = (struct gate){
		.offset_low = (u16)offset,
		.selector = selector,
		.ist = ist,
		.type = type,
		.offset_mid = (u16)(offset >> 16),
		.offset_high = (u32)(offset >> 32),
	};
}

/* A system descriptor of two entries: TSS or LDT. */
void set_tss(u16 selector, u64 base, u32 limit, u8 type)
{
	u64 *descriptor = &own_gdt[selector / 8];

	descriptor[0] = (u64)(limit & 0xffff) | (base & 0xffffff) << 16 | (u64)type << 40;
	descriptor[0] |= (u64)(limit >> 16) << 48 | (base >> 24 & 0xff) << 56;
	descriptor[1] = base >> 32;
}

void load_tr(u16 selector)
{
	__asm__ volatile("ltr %w0" : : "r"(selector) : "memory");
}

static void reset_tables(void)
{
	struct table_register gdtr = { sizeof(own_gdt) - 1, (u64)own_gdt };
	struct table_register idtr = { sizeof(own_idt) - 1, (u64)own_idt };

	memset(own_gdt, 0, sizeof(own_gdt));
	memcpy(own_gdt, gdt_start, sizeof(gdt_start));
	set_tss(S_TSS, (u64)&own_tss, TSS_LIMIT, TSS_AVAILABLE);
	set_tss(S_LDT, (u64)own_gdt, 8 * 4 - 1, LDT_TYPE);
	for (int vector = 0; vector < 256; vector++)
		set_gate((u8)vector, stub_of((u8)vector), S_KCODE, GATE_INTERRUPT, 0);
	set_gate(NMI, stub_of(NMI), S_KCODE, GATE_INTERRUPT, 2);
	set_gate(DF, stub_of(DF), S_KCODE, GATE_INTERRUPT, 1);
	own_idt[BP].type |= GATE_DPL3;
	own_idt[OF].type |= GATE_DPL3;
	own_idt[DONE].type |= GATE_DPL3;
	own_idt[CALL].type |= GATE_DPL3;
	own_idt[CALL_TRAP].type = GATE_TRAP | GATE_DPL3;
	__asm__ volatile("lgdt %0; lidt %1" : : "m"(gdtr), "m"(idtr) : "memory");
}

static void reset_tss(void)
{
	own_tss.rsp[0] = (u64)(rsp0_stack + STACK_SIZE);
	own_tss.ist[0] = (u64)(ist_stack1 + STACK_SIZE);
	own_tss.ist[1] = (u64)(ist_stack2 + STACK_SIZE);
	own_tss.iomap_base = offsetof(struct tss, iomap);
	memset(own_tss.iomap, 0xff, sizeof(own_tss.iomap));
	load_tr(S_TSS);
	__asm__ volatile("lldt %w0" : : "r"(0));
}

/* Only what differs is written: each of these is an exit from a virtual machine. */
static void reset_registers(void)
{
	if (get_cr0() != CR0_START)
		set_cr0(CR0_START);
	if (get_cr4() != CR4_START)
		set_cr4(CR4_START);
	if ((rdmsr(MSR_EFER) & 0xbff) != EFER_START)
		wrmsr(MSR_EFER, EFER_START);
	set_dr7(DR7_RESET);
	set_dr6(DR6_RESET);
	wrmsr(MSR_STAR, (u64)(S_UCODE32 & ~3) << 48 | 3UL << 48 | (u64)S_KCODE << 32);
	wrmsr(MSR_FMASK, 0);
	wrmsr(MSR_SYSENTER_CS, S_KCODE);
	wrmsr(MSR_SYSENTER_ESP, (u64)(rsp0_stack + STACK_SIZE));
	__asm__ volatile("fninit");
}

void open_low_memory(void)
{
	u64 root = read_cr3();

	*table_entry(root, 0, 4, true) |= PT_USER;
	*table_entry(root, 0, 3, true) |= PT_USER;
	for (u64 gva = 0; gva < 4 * MIB; gva += 2 * MIB)
		*table_entry(root, gva, 2, true) |= PT_USER;
	write_cr3(root);
}

void reset_state(void)
{
	reset_tables();
	reset_tss();
	reset_registers();
}
