/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "events.h"

#define VECTOR 0x40 /* within the runtime's IDT, which leaves it alone */
#define GATE_INTERRUPT 0x8e
#define APIC 0xfee00000UL
#define APIC_SVR 0xf0
#define APIC_ICR 0x300
#define APIC_LVT_TIMER 0x320
#define APIC_INITIAL 0x380
#define APIC_DIVIDE 0x3e0
#define ENABLE 0x1ff
#define DIVIDE_BY_1 0xb
#define TO_SELF 0x40000
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define EFER_SCE 1
#define SYSRET_BASE 0x10UL /* SS is the selector after it, 64-bit CS the one after that */

extern const u8 interrupt_entry[], syscall_entry[];
extern u8 user_syscalls[];

u64 interrupts_taken, syscalls_taken;

/* No C: what is measured is the event, not a handler. */
__asm__(".pushsection .text\n"
	".globl interrupt_entry\n"
	"interrupt_entry:\n"
	"	incq interrupts_taken\n"
	"	pushq %rax\n"
	"	movl $0xfee000b0, %eax\n"
	"	movl $0, (%rax)\n"
	"	popq %rax\n"
	"	iretq\n"
	".globl syscall_entry\n"
	"syscall_entry:\n"
	"	incq syscalls_taken\n"
	"	sysretq\n"
	".popsection\n"
	".pushsection .user, \"ax\"\n"
	".globl user_syscalls\n"
	"user_syscalls:\n"
	"	syscall\n"
	"	dec %rdi\n"
	"	jnz user_syscalls\n"
	"	xorl %eax, %eax\n"
	"	int $0x80\n"
	".popsection");

static void apic_write(u32 reg, u32 value)
{
	*(volatile u32 *)(APIC + reg) = value;
}

static void wrmsr(u32 index, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static u64 rdmsr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

void interrupt_setup(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr;
	u64 entry = (u64)interrupt_entry, *gate;

	__asm__ volatile("sidt %0" : "=m"(idtr));
	gate = (u64 *)idtr.base + 2 * VECTOR;
	gate[0] = (entry & 0xffff) | (u64)KERNEL_CS << 16 | (u64)GATE_INTERRUPT << 40 | (entry >> 16 & 0xffff) << 48;
	gate[1] = entry >> 32;
	outb(0xff, 0x21);
	outb(0xff, 0xa1);
	apic_write(APIC_SVR, ENABLE);
	apic_write(APIC_DIVIDE, DIVIDE_BY_1);
	apic_write(APIC_LVT_TIMER, VECTOR);
}

static void wait_for(u64 taken)
{
	while (*(volatile u64 *)&interrupts_taken < taken)
		__asm__ volatile("pause" : : : "memory");
}

void ipi_loop(u64 count)
{
	__asm__ volatile("sti");
	for (u64 i = 0, taken = interrupts_taken; i < count; i++) {
		apic_write(APIC_ICR, TO_SELF | VECTOR);
		wait_for(++taken);
	}
	__asm__ volatile("cli");
}

void timer_loop(u64 count)
{
	__asm__ volatile("sti");
	for (u64 i = 0, taken = interrupts_taken; i < count; i++) {
		apic_write(APIC_INITIAL, 1);
		wait_for(++taken);
	}
	__asm__ volatile("cli");
}

static u64 no_syscall(u64 number, u64 a, u64 b, u64 c)
{
	fail("int 0x80 number %lu(%lu, %lu, %lu)", number, a, b, c);
}

void syscall_setup(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, SYSRET_BASE << 48 | (u64)KERNEL_CS << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_FMASK, 0x200);
}

void syscall_loop(u64 count)
{
	enter_user(USER_CODE + (u64)(user_syscalls - _user_start), USER_STACK, count, no_syscall);
}

void input_loop(u64 count)
{
	for (u64 i = 0; i < count; i++)
		inb(MARK_PORT);
}

void cpuid_loop(u64 count)
{
	for (u64 i = 0; i < count; i++)
		serialize();
}
