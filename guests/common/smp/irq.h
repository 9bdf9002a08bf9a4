/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Interrupt vectors FIRST_IRQ..LAST_IRQ in the IDT of idt.c, which all CPUs share. They take their
 * handlers by set_handler(), too; the handler runs with interrupts off on the CPU that was
 * interrupted, on its stack, and says apic_eoi() itself. An interrupt without a handler ends the
 * guest as an exception does.
 */
#ifndef SMP_IRQ_H
#define SMP_IRQ_H

#include "idt.h"

#define VECTOR_NMI 2
#define VECTOR_BP 3
#define FIRST_IRQ 0x20
#define LAST_IRQ 0x7f
#define VECTOR_WAKE 0x20 /* ends a HLT and does nothing else */
#define VECTOR_SPURIOUS 0x7f

/* Make the gates; set the handlers of VECTOR_WAKE and VECTOR_SPURIOUS. */
void irq_init(void);

#endif
