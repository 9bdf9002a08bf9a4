/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The two ways in. Both arrive at boot_main(start info) in 64-bit mode, CPL 0, interrupts off, on a
 * stack of ours, with our GDT.
 *
 * _start    long mode already on, RBX = RDI = start info (shadowvm, which the second note asks for it)
 * _start32  32-bit protected mode without paging, EBX = start info (PVH; the Xen note below names
 *           it): makes what _start expects
 */

#define PML4		0x9000
#define PDPT		0xa000
#define PDS		0xb000
#define PDS_END		0xf000
#define BOOT_STACK	0x8ff0

#define CR0_VALUE	0x80050033	/* PG AM WP NE ET MP PE */
#define CR4_VALUE	0x000006a0	/* OSXMMEXCPT OSFXSR PGE PAE */
#define MSR_EFER	0xc0000080
#define EFER_VALUE	0x00000900	/* NX LME */

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define SHADOWVM_ELFNOTE_LONG_MODE 1
#define STACK_SIZE	16384

	.section .note.Xen, "a", @note
	.balign 4
	.long	4, 8, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.quad	_start32
	.long	9, 0, SHADOWVM_ELFNOTE_LONG_MODE
	.asciz	"shadowvm"
	.balign	4

	.section .text.start, "ax", @progbits
	.globl	_start32
	.code32
_start32:
	cli
	cld
	movl	$PML4, %edi
	xorl	%eax, %eax
	movl	$((PDS_END - PML4) / 4), %ecx
	rep stosl
	movl	$(PDPT + 3), PML4
	movl	$(PDS + 0x0003), PDPT
	movl	$(PDS + 0x1003), PDPT + 8
	movl	$(PDS + 0x2003), PDPT + 16
	movl	$(PDS + 0x3003), PDPT + 24
	movl	$PDS, %edi
	movl	$0x83, %eax		/* 2 MiB page, writable, present */
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	cmpl	$PDS_END, %edi
	jne	1b
	movl	$CR4_VALUE, %eax
	movl	%eax, %cr4
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	$EFER_VALUE, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR0_VALUE, %eax
	movl	%eax, %cr0
	lgdt	gdt_register
	movl	$BOOT_STACK, %esp
	ljmp	$0x08, $2f

	.code64
2:	movl	%ebx, %ebx
	movq	%rbx, %rdi

	.globl	_start
_start:
	cli
	cld
	movq	%rdi, %rbx
	lgdt	gdt_register
	movl	$stack_top, %esp
	pushq	$0x08
	pushq	$3f
	lretq
3:	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$_bss_start, %edi
	movl	$_bss_end, %ecx
	subl	%edi, %ecx
	shrl	$3, %ecx
	rep stosq
	movq	%rbx, %rdi
	xorl	%ebp, %ebp
	call	boot_main
	ud2

	.section .data
	.globl	gdt
	.balign	16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* 0x08 kernel code, 64-bit */
	.quad	0x00cf93000000ffff	/* 0x10 kernel data */
	.quad	0x00cff3000000ffff	/* 0x18 user data */
	.quad	0x00affb000000ffff	/* 0x20 user code, 64-bit */
	.quad	0, 0			/* 0x28 TSS, filled in by idt_init */
gdt_end:
gdt_register:
	.word	gdt_end - gdt - 1
	.quad	gdt

	/* Not in .bss: the stack is in use while .bss is cleared. */
	.section .stack, "aw", @nobits
	.balign	16
	.skip	STACK_SIZE
stack_top:
