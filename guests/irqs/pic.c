/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pair of 8259s, through LINT0 as ExtINT. Vector 0x20 + n is line n. */
#include "irqs.h"

#define READ_IRR 0x0a
#define READ_ISR 0x0b
#define POLL 0x0c
#define SPECIAL_MASK_ON 0x68
#define SPECIAL_MASK_OFF 0x48
#define SPECIFIC_EOI 0x60
#define ROTATE_EOI 0xa0
#define SET_PRIORITY 0xc0
#define ALLOW(...) pic_mask((u16) ~(0x4 | (__VA_ARGS__)))

static void pulse(int line)
{
	raise_line(line);
	lower_line(line);
}

static void pic_edge(void)
{
	handler = end_pic;
	ALLOW(1 << 5);
	raise_line(5);
	open_window();
	expect_log(0x25);
	expect_nothing();
	lower_line(5);
	raise_line(5);
	open_window();
	expect_log(0x25);
	lower_line(5);
}

static void pic_registers(void)
{
	ALLOW(1 << 5);
	expect("mask", inb(PIC1 + 1), 0xdb);
	raise_line(5);
	expect("IRR", pic_read(PIC1, READ_IRR) & 0xfe, 1 << 5);
	expect("ISR", pic_read(PIC1, READ_ISR), 0);
	open_window();
	expect_log(0x25);
	expect("IRR in service", pic_read(PIC1, READ_IRR) & 1 << 5, 0);
	expect("ISR in service", pic_read(PIC1, READ_ISR), 1 << 5);
	pic_eoi(0x25);
	expect("ISR after EOI", pic_read(PIC1, READ_ISR), 0);
	lower_line(5);
}

static u64 times;

static void lower_after_three(u64 vector, struct irq_frame *frame)
{
	if (++times == 3)
		lower_line(5);
	end_pic(vector, frame);
}

/* A level line interrupts again after each EOI until it is lowered. */
static void pic_level(void)
{
	times = 0;
	handler = lower_after_three;
	outb(1 << 5, ELCR1);
	expect("ELCR", inb(ELCR1), 1 << 5);
	ALLOW(1 << 5);
	raise_line(5);
	for (int i = 0; i < 5; i++)
		open_window();
	expect_log(0x25, 0x25, 0x25);
}

/* A level line that is lowered before it was taken is forgotten. */
static void pic_level_withdrawn(void)
{
	handler = end_pic;
	outb(1 << 5, ELCR1);
	ALLOW(1 << 5);
	raise_line(5);
	lower_line(5);
	expect_nothing();
}

static void pic_masks(void)
{
	handler = end_pic;
	raise_line(5);
	expect_nothing();
	ALLOW(1 << 5);
	open_window();
	expect_log(0x25);
	lower_line(5);
}

static void pic_priorities(void)
{
	handler = end_pic;
	ALLOW(1 << 3 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14);
	pulse(5);
	pulse(14);
	pulse(7);
	pulse(3);
	pulse(9);
	for (int i = 0; i < 5; i++)
		open_window();
	expect_log(0x29, 0x2e, 0x23, 0x25, 0x27);
}

/* A handler that lets interrupts in before EOI is interrupted by higher lines only. */
static void nest_in_five(u64 vector, struct irq_frame *frame)
{
	if (vector == 0x25) {
		raise_line(7);
		raise_line(3);
		open_window();
	}
	end_pic(vector, frame);
}

static void pic_nesting(void)
{
	handler = nest_in_five;
	ALLOW(1 << 3 | 1 << 5 | 1 << 7);
	pulse(5);
	open_window();
	open_window();
	expect_log(0x25, 0x23, 0x27);
}

static void pic_specific_eoi(void)
{
	ALLOW(1 << 3 | 1 << 5);
	pulse(5);
	open_window();
	pulse(3);
	open_window();
	expect_log(0x25, 0x23);
	expect("ISR", pic_read(PIC1, READ_ISR), 1 << 3 | 1 << 5);
	outb(SPECIFIC_EOI | 5, PIC1);
	expect("ISR without 5", pic_read(PIC1, READ_ISR), 1 << 3);
	outb(SPECIFIC_EOI | 3, PIC1);
	expect("ISR empty", pic_read(PIC1, READ_ISR), 0);
}

/* EOI that is not specific ends the highest in service. */
static void pic_eoi_is_of_the_highest(void)
{
	ALLOW(1 << 3 | 1 << 5);
	pulse(5);
	open_window();
	pulse(3);
	open_window();
	expect_log(0x25, 0x23);
	outb(0x20, PIC1);
	expect("ISR", pic_read(PIC1, READ_ISR), 1 << 5);
	outb(0x20, PIC1);
}

/* Rotation: the line that was ended becomes the lowest. */
static void pic_rotation(void)
{
	ALLOW(1 << 3 | 1 << 5);
	pulse(3);
	open_window();
	outb(ROTATE_EOI, PIC1);
	handler = end_pic;
	pulse(3);
	pulse(5);
	open_window();
	open_window();
	expect_log(0x23, 0x25, 0x23);
	outb(SET_PRIORITY | 7, PIC1);
	pulse(3);
	pulse(5);
	open_window();
	open_window();
	expect_log(0x23, 0x25);
}

static u8 isr_inside;

static void note_isr(u64 vector, struct irq_frame *frame)
{
	(void)vector, (void)frame;
	isr_inside = pic_read(PIC1, READ_ISR);
}

static void pic_auto_eoi(void)
{
	pic_init(3);
	handler = note_isr;
	ALLOW(1 << 5);
	pulse(5);
	open_window();
	pulse(5);
	open_window();
	expect_log(0x25, 0x25);
	expect("ISR inside", isr_inside, 0);
}

/* Lines of the slave come through line 2 of the master, whose mask covers them all. */
static void pic_slave(void)
{
	pic_mask((u16) ~(1 << 10));
	raise_line(10);
	expect_nothing();
	expect("IRR of the slave", pic_read(PIC2, READ_IRR) & 0xfe, 1 << 2);
	ALLOW(1 << 10);
	open_window();
	expect_log(0x2a);
	expect("ISR of the master", pic_read(PIC1, READ_ISR), 1 << 2);
	expect("ISR of the slave", pic_read(PIC2, READ_ISR), 1 << 2);
	pic_eoi(0x2a);
	expect("ISRs after EOI", pic_read(PIC1, READ_ISR) | pic_read(PIC2, READ_ISR), 0);
	lower_line(10);
}

/* Special mask mode: a line in service that is masked does not keep lower ones out. */
static void pic_special_mask(void)
{
	ALLOW(1 << 3 | 1 << 5);
	pulse(3);
	open_window();
	pulse(5);
	open_window();
	expect_log(0x23);
	outb(SPECIAL_MASK_ON, PIC1);
	ALLOW(1 << 5);
	open_window();
	expect_log(0x25);
	outb(SPECIAL_MASK_OFF, PIC1);
	outb(SPECIFIC_EOI | 5, PIC1);
	outb(SPECIFIC_EOI | 3, PIC1);
}

/* Polling acknowledges without an interrupt. */
static void pic_poll(void)
{
	ALLOW(1 << 5);
	pulse(5);
	expect("poll", pic_read(PIC1, POLL), 0x85);
	expect_nothing();
	expect("ISR", pic_read(PIC1, READ_ISR), 1 << 5);
	outb(0x20, PIC1);
}

/* ICW1 forgets what is in service, the mask and edges that came before. */
static void pic_initialization(void)
{
	ALLOW(1 << 5);
	pulse(5);
	open_window();
	expect_log(0x25);
	pic_init(1);
	expect("ISR", pic_read(PIC1, READ_ISR), 0);
	handler = end_pic;
	ALLOW(1 << 5);
	pulse(5);
	open_window();
	expect_log(0x25);
}

/* LINT0 masked, or the APIC's LVT set to NMI or a vector of its own. */
static void lint0_modes(void)
{
	handler = end_pic;
	ALLOW(1 << 5);
	apic_write(APIC_LVT_LINT0, MODE_EXTINT | MASKED);
	pulse(5);
	expect_nothing();
	apic_write(APIC_LVT_LINT0, MODE_EXTINT);
	open_window();
	expect_log(0x25);
}

static const struct test tests[] = {
	RUN(pic_edge) RUN(pic_registers) RUN(pic_level) RUN(pic_level_withdrawn) RUN(pic_masks) RUN(pic_priorities)
	RUN(pic_nesting) RUN(pic_specific_eoi) RUN(pic_eoi_is_of_the_highest) RUN(pic_rotation) RUN(pic_auto_eoi)
	RUN(pic_slave) RUN(pic_special_mask) RUN(pic_poll) RUN(pic_initialization) RUN(lint0_modes)
};
const struct group pic_group = { tests, ARRAY_SIZE(tests) };
