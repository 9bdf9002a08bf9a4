/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "smp.h"

#include "ap.h"
#include "apic.h"
#include "atomic.h"
#include "boot.h"
#include "cpu.h"
#include "irq.h"
#include "ram.h"
#include "serial.h"
#include "string.h"

#define AP_STACK_SIZE (4 * PAGE_SIZE)
#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_NB_CPUS 5
#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1
#define TSS_AVAILABLE 0x89UL
#define RESTART_SPINS (1UL << 20)

struct ap_boot {
	u32 cr0, cr3, cr4, efer;
	u64 stack, cpu;
};

extern u64 gdt[];
extern const u8 ap_trampoline[], ap_trampoline_end[];

u32 nr_cpus = 1;

static struct cpu cpus[MAX_CPUS];
static struct table_register idtr;

void load_gdt(const struct table_register *gdtr);
_Noreturn void ap_main(struct cpu *cpu);

static u32 count_cpus(void)
{
	u32 count;

	__asm__ volatile("outw %w0, %w1" : : "a"(FW_CFG_NB_CPUS), "Nd"(FW_CFG_SELECTOR));
	count = inb(FW_CFG_DATA);
	return count | (u32)inb(FW_CFG_DATA) << 8;
}

/* GDT as the boot CPU's, but with a TSS of its own; IDT the same; GS. */
static void load_tables(struct cpu *cpu)
{
	struct table_register gdtr = { sizeof(cpu->gdt) - 1, (u64)cpu->gdt };
	u64 base = (u64)&cpu->tss, *descriptor = &cpu->gdt[TSS_SELECTOR / 8];

	memcpy(cpu->gdt, gdt, sizeof(cpu->gdt));
	cpu->tss.iomap_base = sizeof(cpu->tss);
	descriptor[0] = (sizeof(cpu->tss) - 1) | (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
	descriptor[0] |= TSS_AVAILABLE << 40;
	descriptor[1] = base >> 32;
	load_gdt(&gdtr);
	__asm__ volatile("ltr %w0; lidt %1" : : "r"(TSS_SELECTOR), "m"(idtr) : "memory");
	wrmsr(MSR_GS_BASE, (u64)cpu);
}

void ap_main(struct cpu *cpu)
{
	load_tables(cpu);
	apic_enable();
	store_release(&cpu->online, 1);
	for (;;) {
		irq_disable();
		if (!load_acquire(&cpu->busy)) {
			irq_enable_and_halt();
			continue;
		}
		irq_enable();
		cpu->fn(cpu->arg);
		store_release(&cpu->busy, 0);
	}
}

/* A second start-up IPI follows when the first one seems lost (SDM vol. 3, 9.4.4). */
void cpu_start(u32 id)
{
	struct cpu *cpu = &cpus[id];
	struct ap_boot *boot = (struct ap_boot *)AP_BOOT;

	memcpy((void *)AP_PAGE, ap_trampoline, (u64)(ap_trampoline_end - ap_trampoline));
	*boot = (struct ap_boot){
		.cr0 = (u32)read_cr0(),
		.cr3 = (u32)read_cr3(),
		.cr4 = (u32)read_cr4(),
		.efer = (u32)rdmsr(MSR_EFER),
		.stack = cpu->stack_top,
		.cpu = (u64)cpu,
	};
	cpu->online = cpu->busy = 0;
	apic_send(id, ICR_INIT | ICR_ASSERT);
	apic_send(id, ICR_STARTUP | ICR_ASSERT | AP_PAGE / PAGE_SIZE);
	for (u64 spins = 0; !load_acquire(&cpu->online) && spins < RESTART_SPINS; spins++)
		cpu_relax();
	if (!load_acquire(&cpu->online))
		apic_send(id, ICR_STARTUP | ICR_ASSERT | AP_PAGE / PAGE_SIZE);
	spin_until(load_acquire(&cpu->online), "an AP to start");
}

static void prepare(u32 id)
{
	struct cpu *cpu = &cpus[id];

	cpu->self = cpu;
	cpu->id = id;
	cpu->tss.ist[IST_DF - 1] = (u64)ram_alloc(PAGE_SIZE, PAGE_SIZE) + PAGE_SIZE;
	if (id)
		cpu->stack_top = (u64)ram_alloc(AP_STACK_SIZE, PAGE_SIZE) + AP_STACK_SIZE;
}

void smp_start(bool x2apic)
{
	u32 count = count_cpus();

	if (count > MAX_CPUS)
		usage("%u CPUs are more than %d", count, MAX_CPUS);
	if (x2apic && !apic_has_x2apic())
		usage("the CPU has no x2APIC mode");
	outb(0xff, PIC1_MASK);
	outb(0xff, PIC2_MASK);
	__asm__ volatile("sidt %0" : "=m"(idtr));
	irq_init();
	for (u32 id = 0; id < count; id++)
		prepare(id);
	load_tables(&cpus[0]);
	if (x2apic)
		apic_use_x2apic();
	apic_enable();
	for (u32 id = 1; id < count; id++)
		cpu_start(id);
	nr_cpus = count;
	irq_enable();
}

void smp_call(u32 id, cpu_fn fn, u64 arg)
{
	struct cpu *cpu = &cpus[id];

	if (cpu == this_cpu()) {
		fn(arg);
		return;
	}
	spin_until(!load_acquire(&cpu->busy), "a CPU to become idle");
	cpu->fn = fn;
	cpu->arg = arg;
	store_release(&cpu->busy, 1);
	apic_send(id, ICR_ASSERT | VECTOR_WAKE);
}

void smp_wait(u32 id)
{
	spin_until(!load_acquire(&cpus[id].busy), "a CPU to finish");
}

void smp_call_all(cpu_fn fn, u64 arg)
{
	for (u32 id = 0; id < nr_cpus; id++)
		if (id != cpu_id())
			smp_call(id, fn, arg);
	fn(arg);
	for (u32 id = 0; id < nr_cpus; id++)
		if (id != cpu_id())
			smp_wait(id);
}

void barrier_wait(struct barrier *barrier)
{
	u64 generation = load_acquire(&barrier->generation);

	if (atomic_xadd(&barrier->arrived, 1) + 1 < nr_cpus) {
		spin_until(load_acquire(&barrier->generation) != generation, "the others at a barrier");
		return;
	}
	barrier->arrived = 0;
	store_release(&barrier->generation, generation + 1);
}

void cpu_fail(const char *format, ...)
{
	static u64 failing;
	va_list args;

	irq_disable();
	while (atomic_xchg(&failing, 1))
		__asm__ volatile("hlt");
	printf(GUEST_NAME ": FAILED ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit_guest(EXIT_FAILED);
}
