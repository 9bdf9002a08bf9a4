/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way of an AP from the start-up IPI, in real mode at AP_PAGE:0, to ap_main() in protected mode
 * on the runtime's GDT and the stack that ap_stack says. What lies from ap_trampoline to
 * ap_trampoline_end is copied to AP_PAGE.
 */
#include "ap.h"
#include "selectors.h"

#define CR0_PE	1

	.section .rodata
	.balign	16
	.globl	ap_trampoline, ap_trampoline_end
ap_trampoline:
	.code16
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	register - ap_trampoline
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$KERNEL_CODE, $ap_start

	/* The runtime's GDT lies above 1 MiB, but its register's value may lie here. */
	.balign	4
register:
	.word	SPARE_DATA + 7
	.long	gdt
ap_trampoline_end:

	.text
	.code32
ap_start:
	movl	$KERNEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movl	ap_stack, %esp
	xorl	%ebp, %ebp
	call	ap_main
	ud2
