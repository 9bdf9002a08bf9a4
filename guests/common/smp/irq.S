/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One stub of 16 bytes for each vector of irq.h; the frame is that of an exception without error. */

	.section .text
	.code64
	.globl	irq_stubs
	.balign	16
irq_stubs:
	.set	vector, 0x20
	.rept	0x60
	.balign	16
	pushq	$0
	pushq	$vector
	jmp	trap_entry
	.set	vector, vector + 1
	.endr
