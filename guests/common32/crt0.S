/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Multiboot 1 header and entry: 32-bit protected mode, no paging, EBX = information. Takes its own
 * GDT and stack, clears .bss and goes on at boot_main(magic, information).
 */
#include "selectors.h"

#define HEADER_MAGIC	0x1badb002
#define HEADER_FLAGS	0x00000003	/* modules on pages, memory information */
#define STACK_SIZE	16384

	.section .multiboot, "a", @progbits
	.balign	4
	.long	HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

	.text
	.globl	_start
_start:
	cli
	cld
	lgdt	gdt_register
	movl	$stack_top, %esp
	ljmp	$KERNEL_CODE, $1f
1:	movl	$KERNEL_DATA, %ecx
	movl	%ecx, %ds
	movl	%ecx, %es
	movl	%ecx, %ss
	xorl	%ecx, %ecx
	movl	%ecx, %fs
	movl	%ecx, %gs
	movl	%eax, %edx
	movl	$_bss_start, %edi
	movl	$_bss_end, %ecx
	subl	%edi, %ecx
	shrl	$2, %ecx
	xorl	%eax, %eax
	rep stosl
	xorl	%ebp, %ebp
	pushl	%ebx
	pushl	%edx
	call	boot_main
	ud2

	.data
	.globl	gdt
	.balign	16
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* KERNEL_CODE */
	.quad	0x00cf93000000ffff	/* KERNEL_DATA */
	.quad	0x00cffb000000ffff	/* USER_CODE */
	.quad	0x00cff3000000ffff	/* USER_DATA */
	.quad	0			/* TSS_SELECTOR, filled in by tss_init */
	.quad	0, 0			/* SPARE_CODE, SPARE_DATA: a guest's own */
gdt_end:
	.globl	gdt_register
gdt_register:
	.word	gdt_end - gdt - 1
	.long	gdt

	/* Not in .bss: the stack is in use while .bss is cleared. */
	.section .stack, "aw", @nobits
	.balign	16
	.skip	STACK_SIZE
	.globl	stack_top
stack_top:
