/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The APIC's timer, the 8254, the CMOS clock, and fw_cfg. */
#include "irqs.h"

#define PERIODIC 0x20000
#define TSC_DEADLINE 0x40000
#define PIT 0x40
#define PIT_CONTROL 0x43
#define SPEAKER 0x61
#define RTC_INDEX 0x70
#define RTC_DATA 0x71
#define FW_CFG_SELECT 0x510
#define FW_CFG_DATA 0x511
#define SHORT_COUNT 20000

static void outw(u16 value, u16 port)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static void spin(u64 tsc)
{
	u64 start = rdtsc();

	while (rdtsc() - start < tsc)
		__asm__ volatile("pause");
}

static void apic_timer_one_shot(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, 0x51);
	apic_write(APIC_INITIAL, SHORT_COUNT);
	expect("came", wait_for(1), true);
	expect("current count", apic_read(APIC_CURRENT), 0);
	spin(200000);
	open_window();
	expect_log(0x51);
	apic_write(APIC_INITIAL, SHORT_COUNT);
	expect("came again", wait_for(1), true);
	expect_log(0x51);
}

static void apic_timer_periodic(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, PERIODIC | 0x51);
	apic_write(APIC_INITIAL, SHORT_COUNT);
	expect("came", wait_for(5), true);
	apic_write(APIC_INITIAL, 0);
	expect("current count", apic_read(APIC_CURRENT), 0);
	open_window();
	nr_log = 0;
	spin(200000);
	expect_nothing();
}

static void apic_timer_masked(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, MASKED | 0x51);
	apic_write(APIC_INITIAL, SHORT_COUNT);
	while (apic_read(APIC_CURRENT))
		;
	expect_nothing();
}

/* The count falls; by 1 and by 128 it falls at very different speeds. */
static void apic_timer_divider(void)
{
	u64 start, by_1, by_128;

	apic_write(APIC_LVT_TIMER, MASKED | 0x51);
	apic_write(APIC_DIVIDE, 0xb);
	apic_write(APIC_INITIAL, 0xffffffff);
	start = rdtsc();
	spin(1000000);
	by_1 = 0xffffffff - apic_read(APIC_CURRENT);
	by_1 = by_1 * 1000 / (rdtsc() - start);
	apic_write(APIC_DIVIDE, 0xa);
	apic_write(APIC_INITIAL, 0xffffffff);
	start = rdtsc();
	spin(1000000);
	by_128 = 0xffffffff - apic_read(APIC_CURRENT);
	by_128 = by_128 * 1000 / (rdtsc() - start);
	expect("it counts", by_1 > 100, true);
	expect("it counts more slowly", by_128 < by_1 / 20, true);
	expect("divide configuration", apic_read(APIC_DIVIDE), 0xa);
	expect("initial count", apic_read(APIC_INITIAL), 0xffffffff);
}

static void apic_timer_deadline(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, TSC_DEADLINE | 0x51);
	expect("MSR", rdmsr(MSR_TSC_DEADLINE), 0);
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 100000);
	expect("it is armed", rdmsr(MSR_TSC_DEADLINE) != 0, true);
	expect("came", wait_for(1), true);
	expect("MSR after it came", rdmsr(MSR_TSC_DEADLINE), 0);
	expect_log(0x51);
	wrmsr(MSR_TSC_DEADLINE, 1);
	open_window();
	expect_log(0x51);
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 1000000);
	wrmsr(MSR_TSC_DEADLINE, 0);
	spin(2000000);
	expect_nothing();
	apic_write(APIC_INITIAL, 100);
	spin(100000);
	expect_nothing();
}

/* HLT waits for the timer. */
static void apic_timer_wakes(void)
{
	handler = end_apic;
	apic_write(APIC_LVT_TIMER, 0x51);
	apic_write(APIC_INITIAL, SHORT_COUNT);
	__asm__ volatile("sti; hlt; cli" : : : "memory");
	expect_log(0x51);
}

static void pit_count(u8 mode, u16 count)
{
	outb((u8)(0x30 | mode << 1), PIT_CONTROL);
	outb((u8)count, PIT);
	outb((u8)(count >> 8), PIT);
}

static void pit_modes(void)
{
	handler = end_pic;
	pic_mask(0xfffe);
	open_window();
	nr_log = 0;
	for (u8 mode = 2; mode < 4; mode++) {
		pit_count(mode, 1193);
		expect("came", wait_for(3), true);
		outb(0x30, PIT_CONTROL);
		open_window();
		nr_log = 0;
	}
	pit_count(0, 1193);
	expect("came once", wait_for(1), true);
	spin(20000);
	open_window();
	expect_log(0x20);
}

static void pit_status(void)
{
	pit_count(2, 50000);
	outb(0xe2, PIT_CONTROL);
	expect("status", inb(PIT) & 0x3f, 0x34);
	outb(0x36, PIT_CONTROL);
	outb(0xe2, PIT_CONTROL);
	expect("status without a count", inb(PIT) & (exact ? 0x7f : 0x3f), exact ? 0x76 : 0x36);
	outb(0x1a, PIT_CONTROL);
	outb(0xe2, PIT_CONTROL);
	expect("status, low byte only", inb(PIT) & 0x3f, 0x1a);
}

static u16 latched(u8 channel)
{
	u8 low;

	outb((u8)(channel << 6), PIT_CONTROL);
	low = inb((u16)(PIT + channel));
	return (u16)(low | inb((u16)(PIT + channel)) << 8);
}

/* A latched count stays until it is read; the counter goes down. */
static void pit_latch(void)
{
	u16 first, second;

	pit_count(2, 0xffff);
	first = latched(0);
	do
		second = latched(0);
	while (second == first);
	expect("the count falls", second < first, true);
}

/* Channel 2: gate by bit 0 of port 0x61, output at bit 5. */
static void pit_channel_2(void)
{
	outb(inb(SPEAKER) & 0xfc, SPEAKER);
	outb(0xb0, PIT_CONTROL);
	outb(0xff, PIT + 2);
	outb(0xff, PIT + 2);
	expect("output before", inb(SPEAKER) & 0x20, 0);
	outb((inb(SPEAKER) & 0xfc) | 1, SPEAKER);
	outb(0xb0, PIT_CONTROL);
	outb(0x40, PIT + 2);
	outb(0x00, PIT + 2);
	while (!(inb(SPEAKER) & 0x20))
		;
	expect("gate", inb(SPEAKER) & 3, 1);
	outb(inb(SPEAKER) & 0xfc, SPEAKER);
}

static u8 rtc_read(u8 reg)
{
	outb(reg, RTC_INDEX);
	return inb(RTC_DATA);
}

static void rtc_write(u8 reg, u8 value)
{
	outb(reg, RTC_INDEX);
	outb(value, RTC_DATA);
}

static u8 rtc_flags;

static void end_rtc(u64 vector, struct irq_frame *frame)
{
	rtc_flags = rtc_read(0x0c);
	end_pic(vector, frame);
}

static void rtc_periodic(void)
{
	handler = end_rtc;
	pic_mask((u16) ~(1 << 8 | 1 << 2));
	rtc_write(0x0a, 0x26);
	rtc_write(0x0b, 0x42);
	expect("came", wait_for(3), true);
	expect("flags", rtc_flags & 0xc0, 0xc0);
	handler = end_pic;
	rtc_write(0x0b, 0x02);
	open_window();
	nr_log = 0;
	(void)rtc_read(0x0c);
	expect("register B", rtc_read(0x0b), 0x02);
	expect("register D", rtc_read(0x0d) & 0x80, 0x80);
}

/* Without a look at register C there is no second interrupt: the line stays high. */
static void rtc_waits_for_register_c(void)
{
	handler = end_pic;
	pic_mask((u16) ~(1 << 8 | 1 << 2));
	rtc_write(0x0a, 0x23);
	rtc_write(0x0b, 0x42);
	expect("came", wait_for(1), true);
	spin(1000000);
	open_window();
	expect_log(0x28);
	rtc_write(0x0b, 0x02);
	(void)rtc_read(0x0c);
	(void)rtc_read(0x0c);
	expect("register C after it was read", rtc_read(0x0c) & 0x80, 0);
}

/* Update-ended interrupts come each second. */
static void rtc_update(void)
{
	handler = end_rtc;
	pic_mask((u16) ~(1 << 8 | 1 << 2));
	rtc_write(0x0b, 0x12);
	for (int i = 0; i < 3; i++) {
		__asm__ volatile("sti; hlt; cli" : : : "memory");
		expect("flags", rtc_flags & 0x90, 0x90);
	}
	expect_log(0x28, 0x28, 0x28);
}

static void cmos_memory(void)
{
	u8 old = rtc_read(0x50);

	rtc_write(0x50, 0x5a);
	expect("a byte of CMOS memory", rtc_read(0x50), 0x5a);
	rtc_write(0x50, old);
}

static void fw_cfg(void)
{
	const char *const wanted = "QEMU";

	outw(0, FW_CFG_SELECT);
	for (int i = 0; i < 4; i++)
		expect("signature", inb(FW_CFG_DATA), (u8)wanted[i]);
	expect("past its end", inb(FW_CFG_DATA), 0);
	outw(1, FW_CFG_SELECT);
	expect("interface", inb(FW_CFG_DATA) & 1, 1);
	outw(5, FW_CFG_SELECT);
	expect("CPUs", inb(FW_CFG_DATA), 1);
}

static const struct test tests[] = {
	RUN(apic_timer_one_shot) RUN(apic_timer_periodic) RUN(apic_timer_masked) RUN(apic_timer_divider)
	RUN_EXACT(apic_timer_deadline) RUN(apic_timer_wakes) RUN(pit_modes) RUN(pit_status) RUN(pit_latch)
	RUN(pit_channel_2) RUN(rtc_periodic) RUN(rtc_waits_for_register_c) RUN_EXACT(rtc_update) RUN(cmos_memory)
	RUN(fw_cfg)
};
const struct group timer_group = { tests, ARRAY_SIZE(tests) };
