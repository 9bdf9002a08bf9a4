/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The IOAPIC's pins, raised by pc-testdev's lines. */
#include "irqs.h"

#define LEVEL 0x8000
#define REMOTE_IRR 0x4000
#define LOGICAL 0x800
#define PIN 5

static u32 entry(int pin)
{
	return ioapic_read((u8)(0x10 + 2 * pin));
}

static void ioapic_registers(void)
{
	expect("pins", ioapic_read(1) >> 16 & 0xff, IOAPIC_PINS - 1);
	ioapic_write(0, 0x05000000);
	expect("ID", ioapic_read(0), 0x05000000);
	ioapic_write(0, 0);
	ioapic_route(PIN, MASKED | 0x51, 0xab);
	expect("low half", entry(PIN), MASKED | 0x51);
	expect("high half", ioapic_read(0x11 + 2 * PIN), 0xab000000);
}

static void ioapic_edge(void)
{
	handler = end_apic;
	ioapic_route(PIN, 0x51, 0);
	raise_line(PIN);
	open_window();
	expect_log(0x51);
	expect_nothing();
	lower_line(PIN);
	expect_nothing();
	raise_line(PIN);
	open_window();
	expect_log(0x51);
	lower_line(PIN);
}

/* The remote IRR is set from acceptance to EOI; while the line is high, EOI brings the next. */
static void ioapic_level(void)
{
	ioapic_route(PIN, LEVEL | 0x51, 0);
	raise_line(PIN);
	open_window();
	expect_log(0x51);
	expect("remote IRR", entry(PIN) & REMOTE_IRR, REMOTE_IRR);
	expect("TMR", apic_bit(APIC_TMR, 0x51), 1);
	expect_nothing();
	apic_eoi();
	open_window();
	expect_log(0x51);
	lower_line(PIN);
	apic_eoi();
	expect("remote IRR after the line was lowered", entry(PIN) & REMOTE_IRR, 0);
	expect_nothing();
	self_ipi(0x51);
	expect("TMR of an edge", apic_bit(APIC_TMR, 0x51), 0);
	open_window();
	apic_eoi();
	expect_log(0x51);
}

/* An edge on a masked pin is lost, a level is not. */
static void ioapic_mask(void)
{
	handler = end_apic;
	ioapic_route(PIN, MASKED | 0x51, 0);
	raise_line(PIN);
	ioapic_route(PIN, 0x51, 0);
	expect_nothing();
	lower_line(PIN);
	ioapic_route(PIN, MASKED | LEVEL | 0x52, 0);
	raise_line(PIN);
	expect_nothing();
	handler = NULL;
	ioapic_route(PIN, LEVEL | 0x52, 0);
	open_window();
	expect_log(0x52);
	lower_line(PIN);
	apic_eoi();
}

static void try(u32 flags, u8 destination, bool wanted)
{
	ioapic_route(PIN, flags, destination);
	raise_line(PIN);
	open_window();
	lower_line(PIN);
	expect("received", nr_log, wanted);
	nr_log = 0;
}

static void ioapic_destinations(void)
{
	handler = end_apic;
	try(0x51, 0, true);
	try(0x51, 1, false);
	try(0x51, 0xff, true);
	try(LOGICAL | 0x51, 1, true);
	try(LOGICAL | 0x51, 2, false);
	try(LOGICAL | 0x51, 0x81, true);
	try(LOGICAL | 0x151, 1, true); /* lowest priority */
}

static void ioapic_nmi(void)
{
	ioapic_route(PIN, MODE_NMI, 0);
	raise_line(PIN);
	for (int i = 0; i < 100 && !*(volatile u64 *)&nr_log; i++)
		__asm__ volatile("pause");
	expect_log(2);
	lower_line(PIN);
}

/* Each pin has its own vector; the class decides, not the pin. */
static void ioapic_pins(void)
{
	handler = end_apic;
	for (int pin = 3; pin < 8; pin++)
		ioapic_route(pin, (u32)(0xb0 - 0x10 * pin + pin), 0);
	for (int pin = 7; pin >= 3; pin--)
		raise_line(pin);
	for (int i = 0; i < 5; i++)
		open_window();
	expect_log(0x83, 0x74, 0x65, 0x56, 0x47);
	for (int pin = 3; pin < 8; pin++)
		lower_line(pin);
}

static const struct test tests[] = {
	RUN(ioapic_registers) RUN(ioapic_edge) RUN(ioapic_level) RUN(ioapic_mask) RUN(ioapic_destinations)
	RUN(ioapic_nmi) RUN(ioapic_pins)
};
const struct group ioapic_group = { tests, ARRAY_SIZE(tests) };
