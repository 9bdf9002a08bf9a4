/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the reset vector to long mode, one printed line per step:
 *
 *   f000:fff0, CS base 0xffff0000   the first instruction, at 4 GiB - 16
 *   f000:real_start                 real mode, from the copy of this image below 1 MiB
 *   0x18:protected_start            32-bit protected mode, flat segments
 *   (the same code)                 compatibility mode: paging is on, CS still 32-bit
 *   0x08:long_start                 64-bit mode; handover.c finds a kernel and enters it
 *
 * This image is read-only. Memory used: the stack below 0x7000, and what guests/README.md lists.
 */

#define COM1		0x3f8
#define LSR		(COM1 + 5)
#define LSR_THR_EMPTY	0x20
#define POST_PORT	0x80
#define SYSTEM_PORT_A	0x92
#define A20_ON		0x02
#define FAST_RESET	0x01
#define EXIT_PORT	0xf4
#define EXIT_NO_A20	3

#define STACK		0x7000
#define A20_PROBE	0x0504
#define PML4		0x9000
#define PDPT		0xa000
#define PDS		0xb000
#define PDS_END		0xf000
#define PT_TABLE	0x23		/* accessed, writable, present */
#define PT_LEAF		0xe3		/* 2 MiB, dirty, accessed, writable, present */

#define CR0_PE		0x00000001
#define CR0_VALUE	0x80050033	/* PG AM WP NE ET MP PE */
#define CR4_VALUE	0x000006a0	/* OSXMMEXCPT OSFXSR PGE PAE */
#define MSR_EFER	0xc0000080
#define EFER_VALUE	0x00000900	/* NX LME */

#define CODE64		0x08
#define DATA		0x10
#define CODE32		0x18

/* Print a text that follows the call; the number is for a POST card. */
.macro say step, text
	movb	$\step, %al
	outb	%al, $POST_PORT
	call	say\@_end
	.asciz	"\text"
say\@_end:
.endm

	.section .text.real, "ax", @progbits
	.code16
real_start:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %ss
	movw	$STACK, %sp
	call	uart_init
	say	0x01, "fw: real mode at f000:fff0"
	call	puts_real
	call	cr0_real

	/* Bit 0 of this port resets the machine. */
	inb	$SYSTEM_PORT_A, %al
	orb	$A20_ON, %al
	andb	$~FAST_RESET, %al
	outb	%al, $SYSTEM_PORT_A
	/* Without A20, ffff:0514 is 0000:0504. */
	movw	$0xffff, %ax
	movw	%ax, %es
	movw	$0, A20_PROBE
	movw	$0xa20a, %es:A20_PROBE + 0x10
	cmpw	$0, A20_PROBE
	jne	no_a20
	say	0x02, "fw: A20 is on: ffff:0514 is not 0000:0504\r\n"
	call	puts_real

	lgdtl	%cs:gdt_register - 0xf0000
	movl	%cr0, %eax
	orb	$CR0_PE, %al
	movl	%eax, %cr0
	ljmpl	$CODE32, $protected_start

no_a20:
	say	0xe2, "fw: A20 is off and stays off\r\n"
	call	puts_real
	movl	$EXIT_NO_A20, %eax
	outl	%eax, $EXIT_PORT
1:	hlt
	jmp	1b

/* 115200 baud, 8N1, FIFOs on and empty, no interrupts. */
uart_init:
	movw	$uart_setup - 0xf0000, %si
1:	lodsb	%cs:(%si), %al
	movw	$COM1, %dx
	addb	%al, %dl
	lodsb	%cs:(%si), %al
	outb	%al, %dx
	cmpw	$uart_setup_end - 0xf0000, %si
	jne	1b
	ret
uart_setup:
	.byte	1, 0x00, 3, 0x83, 0, 1, 1, 0x00, 3, 0x03, 2, 0x07, 4, 0x03
uart_setup_end:

/* The address of the text is on the stack, below the return address. */
puts_real:
	popw	%bp
	popw	%si
1:	lodsb	%cs:(%si), %al
	testb	%al, %al
	jz	2f
	call	putc_real
	jmp	1b
2:	jmpw	*%bp

putc_real:
	movb	%al, %ah
	movw	$LSR, %dx
1:	inb	%dx, %al
	testb	$LSR_THR_EMPTY, %al
	jz	1b
	movw	$COM1, %dx
	movb	%ah, %al
	outb	%al, %dx
	ret

cr0_real:
	say	0x00, ", CR0 "
	call	puts_real
	movl	%cr0, %ebx
	movw	$8, %cx
1:	roll	$4, %ebx
	movb	%bl, %al
	andb	$0x0f, %al
	cmpb	$10, %al
	jb	2f
	addb	$'a' - '0' - 10, %al
2:	addb	$'0', %al
	call	putc_real
	loop	1b
	movb	$'\r', %al
	call	putc_real
	movb	$'\n', %al
	jmp	putc_real

	.section .text.protected, "ax", @progbits
	.code32
protected_start:
	movl	$DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	%eax, %ss
	movl	$STACK, %esp
	say	0x03, "fw: GDT loaded, CR0.PE set: 32-bit protected mode"
	call	puts32
	call	cr0_32

	xorl	%eax, %eax
	movl	$PML4, %edi
	movl	$((PDS_END - PML4) / 4), %ecx
	rep stosl
	movl	$PDPT + PT_TABLE, PML4
	movl	$PDS + PT_TABLE, %eax
	movl	$PDPT, %edi
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x1000, %eax
	cmpl	$PDS_END + PT_TABLE, %eax
	jne	1b
	movl	$PT_LEAF, %eax
	movl	$PDS, %edi
2:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	cmpl	$PDS_END, %edi
	jne	2b
	say	0x04, "fw: page tables from 0x9000 map 4 GiB by 2 MiB pages\r\n"
	call	puts32

	movl	$CR4_VALUE, %eax
	movl	%eax, %cr4
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	$EFER_VALUE, %eax
	xorl	%edx, %edx
	wrmsr
	say	0x05, "fw: CR4.PAE, CR3 and EFER.LME are set, paging is still off\r\n"
	call	puts32
	movl	$CR0_VALUE, %eax
	movl	%eax, %cr0
	jmp	3f
3:	say	0x06, "fw: CR0.PG set: paging is on, compatibility mode"
	call	puts32
	call	cr0_32
	ljmp	$CODE64, $long_start

puts32:
	popl	%ebp
	popl	%esi
1:	lodsb
	testb	%al, %al
	jz	2f
	call	putc32
	jmp	1b
2:	jmpl	*%ebp

putc32:
	movb	%al, %ah
	movw	$LSR, %dx
1:	inb	%dx, %al
	testb	$LSR_THR_EMPTY, %al
	jz	1b
	movw	$COM1, %dx
	movb	%ah, %al
	outb	%al, %dx
	ret

cr0_32:
	say	0x00, ", CR0 "
	call	puts32
	movl	%cr0, %ebx
	movl	$8, %ecx
1:	roll	$4, %ebx
	movb	%bl, %al
	andb	$0x0f, %al
	cmpb	$10, %al
	jb	2f
	addb	$'a' - '0' - 10, %al
2:	addb	$'0', %al
	call	putc32
	loop	1b
	movb	$'\r', %al
	call	putc32
	movb	$'\n', %al
	jmp	putc32

	.section .text.long, "ax", @progbits
	.code64
long_start:
	xorl	%ebp, %ebp
	movl	$STACK, %esp
	call	hand_over
	ud2

/*
 * enter_kernel(entry, start info, stack): the state that guests/README.md promises. The GDT at 0x500
 * is filled in already.
 */
	.globl	enter_kernel
enter_kernel:
	movq	%rdi, %rax
	movq	%rsi, %rdi
	movq	%rsi, %rbx
	movq	%rdx, %rsp
	lgdt	kernel_gdt_register
	xorl	%ecx, %ecx
	lldt	%cx
	movl	%ecx, %fs
	movl	%ecx, %gs
	pushq	$CODE64
	pushq	%rax
	lretq

	.section .rodata.gdt, "a", @progbits
	.balign	16
	.globl	gdt
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* 0x08 64-bit code */
	.quad	0x00cf93000000ffff	/* 0x10 flat data */
	.quad	0x00cf9b000000ffff	/* 0x18 flat 32-bit code */
gdt_end:
gdt_register:
	.word	gdt_end - gdt - 1
	.long	gdt
kernel_gdt_register:
	.word	3 * 8 - 1
	.quad	0x500

	.section .reset, "ax", @progbits
	.code16
	.globl	reset
reset:
	ljmpw	$0xf000, $real_start - 0xf0000
