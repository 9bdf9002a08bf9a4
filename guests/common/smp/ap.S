/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way of an AP from the start-up IPI, which begins in real mode at AP_PAGE:0, through protected
 * mode to 64-bit mode on the boot CPU's page tables and control registers, and to ap_main(cpu). What
 * lies from ap_trampoline to ap_trampoline_end is copied to AP_PAGE.
 */
#include "ap.h"

#define CODE64	0x08
#define DATA	0x10
#define CODE32	0x18
#define MSR_EFER 0xc0000080
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
	lgdtl	gdt_register - ap_trampoline
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$CODE32, $(AP_PAGE + protected - ap_trampoline)

	.code32
protected:
	movl	$DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	AP_BOOT_CR4, %eax
	movl	%eax, %cr4
	movl	AP_BOOT_CR3, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	AP_BOOT_EFER, %eax
	xorl	%edx, %edx
	wrmsr
	movl	AP_BOOT_CR0, %eax
	movl	%eax, %cr0
	ljmp	$CODE64, $ap_start64

	.balign	8
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* CODE64 */
	.quad	0x00cf93000000ffff	/* DATA */
	.quad	0x00cf9b000000ffff	/* CODE32 */
gdt_register:
	.word	. - gdt - 1
	.long	AP_PAGE + gdt - ap_trampoline
ap_trampoline_end:

	.section .text
	.code64
ap_start64:
	movq	AP_BOOT_STACK, %rsp
	movq	AP_BOOT_CPU, %rdi
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	xorl	%ebp, %ebp
	call	ap_main
	ud2

/* void load_gdt(const struct table_register *): and CS, SS, DS, ES with it; FS and GS stay. */
	.globl	load_gdt
load_gdt:
	lgdt	(%rdi)
	movl	$DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	popq	%rax
	pushq	$CODE64
	pushq	%rax
	lretq
