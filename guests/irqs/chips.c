/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "irqs.h"

#define PIC_INIT 0x11
#define OCW2_EOI 0x20
#define IOAPIC_SELECT 0x00
#define IOAPIC_WINDOW 0x10
#define NR_LINES 16
#define RTC_INDEX 0x70
#define RTC_DATA 0x71

void pic_init(u8 icw4)
{
	outb(PIC_INIT, PIC1);
	outb(PIC1_BASE, PIC1 + 1);
	outb(1 << 2, PIC1 + 1);
	outb(icw4, PIC1 + 1);
	outb(PIC_INIT, PIC2);
	outb(PIC2_BASE, PIC2 + 1);
	outb(2, PIC2 + 1);
	outb(icw4, PIC2 + 1);
	outb(0, ELCR1);
	outb(0, ELCR2);
	pic_mask(0xffff);
}

void pic_mask(u16 mask)
{
	outb((u8)mask, PIC1 + 1);
	outb((u8)(mask >> 8), PIC2 + 1);
}

void pic_eoi(u64 vector)
{
	if (vector >= PIC2_BASE)
		outb(OCW2_EOI, PIC2);
	outb(OCW2_EOI, PIC1);
}

u8 pic_read(u16 port, u8 command)
{
	outb(command, port);
	return inb(port);
}

void raise_line(int line)
{
	outb(1, (u16)(LINE_PORT + line));
}

void lower_line(int line)
{
	outb(0, (u16)(LINE_PORT + line));
}

u32 apic_read(u32 reg)
{
	return *(volatile u32 *)(APIC_BASE + reg);
}

void apic_write(u32 reg, u32 value)
{
	*(volatile u32 *)(APIC_BASE + reg) = value;
}

void apic_eoi(void)
{
	apic_write(APIC_EOI, 0);
}

bool apic_bit(u32 reg, u8 vector)
{
	return apic_read(reg + vector / 32 * 16) >> vector % 32 & 1;
}

void self_ipi(u8 vector)
{
	apic_write(APIC_ICR, SELF | vector);
}

u32 ioapic_read(u8 reg)
{
	*(volatile u32 *)(IOAPIC_BASE + IOAPIC_SELECT) = reg;
	return *(volatile u32 *)(IOAPIC_BASE + IOAPIC_WINDOW);
}

void ioapic_write(u8 reg, u32 value)
{
	*(volatile u32 *)(IOAPIC_BASE + IOAPIC_SELECT) = reg;
	*(volatile u32 *)(IOAPIC_BASE + IOAPIC_WINDOW) = value;
}

void ioapic_route(int pin, u32 flags, u8 destination)
{
	ioapic_write((u8)(0x11 + 2 * pin), (u32)destination << 24);
	ioapic_write((u8)(0x10 + 2 * pin), flags);
}

/* Whatever a case has left pending or in service is taken and ended. */
static void drain(void)
{
	handler = end_apic;
	open_window();
	for (u32 reg = 0; reg < 8; reg++)
		while (apic_read(APIC_ISR + reg * 16))
			apic_eoi();
}

static void reset_apic(void)
{
	apic_write(APIC_SVR, 0x100 | SPURIOUS);
	apic_write(APIC_TPR, 0);
	apic_write(APIC_LVT_TIMER, MASKED);
	apic_write(APIC_INITIAL, 0);
	apic_write(APIC_LVT_ERROR, MASKED);
	apic_write(APIC_LVT_LINT1, MODE_NMI);
	apic_write(APIC_LVT_LINT0, MODE_EXTINT);
	apic_write(APIC_DIVIDE, 0xb);
	apic_write(APIC_DFR, 0xffffffff);
	apic_write(APIC_LDR, 1 << 24);
}

static void quiet_rtc(void)
{
	outb(0x0b, RTC_INDEX);
	outb(0x02, RTC_DATA);
	outb(0x0c, RTC_INDEX);
	(void)inb(RTC_DATA);
}

void reset_chips(void)
{
	cli();
	pic_mask(0xffff);
	for (int pin = 0; pin < IOAPIC_PINS; pin++)
		if (ioapic_read((u8)(0x10 + 2 * pin)) != MASKED)
			ioapic_route(pin, MASKED, 0);
	for (int line = 0; line < NR_LINES; line++)
		if (line != 2 && line != 0 && line != 8)
			lower_line(line);
	quiet_rtc();
	outb(0x30, 0x43); /* channel 0 stands still in mode 0 until it gets a count */
	reset_apic();
	drain();
	pic_init(1);
}

void end_pic(u64 vector, struct irq_frame *frame)
{
	(void)frame;
	pic_eoi(vector);
}

void end_apic(u64 vector, struct irq_frame *frame)
{
	(void)frame;
	if (vector != SPURIOUS && vector >= 32)
		apic_eoi();
}

void open_window(void)
{
	__asm__ volatile("sti; nop; nop; cli" : : : "memory");
}
