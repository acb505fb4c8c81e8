// The way in: 32-bit protected mode, flat, no paging, no stack; ebx points to PVH's start information.
.section .head, "ax"
.code32
.global start
start:
    cld
    movl    %ebx, %esi
    leal    12(%ebx), %esp              // the flags' word will do as a stack of one
    call    1f
1:  popl    %ebp
    subl    $(1b - start), %ebp
    movl    $0, 8(%ebx)

    // The first 4 GiB at their own addresses, by 2 MiB.
    leal    (tables - start)(%ebp), %ebx
    leal    0x1003(%ebx), %eax
    movl    %eax, (%ebx)
    leal    0x2003(%ebx), %eax
    movl    $4, %ecx
    leal    0x1000(%ebx), %edx
2:  movl    %eax, (%edx)
    addl    $0x1000, %eax
    addl    $8, %edx
    loop    2b
    movl    $0x83, %eax
    movl    $2048, %ecx
    leal    0x2000(%ebx), %edx
3:  movl    %eax, (%edx)
    addl    $0x200000, %eax
    addl    $8, %edx
    loop    3b
    leal    (gdt - start)(%ebp), %eax
    movl    %eax, (gdtr - start + 2)(%ebp)
    lgdt    (gdtr - start)(%ebp)
    movl    %ebx, %cr3
    movl    %cr4, %eax
    orl     $0x20, %eax
    movl    %eax, %cr4
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80010001, %eax
    movl    %eax, %cr0
    leal    (stacks + {stack_size} - start)(%ebp), %esp
    leal    (start64 - start)(%ebp), %eax
    pushl   $8
    pushl   %eax
    lret
.code64
start64:
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    %ebp, %ebp
    movl    %esi, %edi
    leaq    rela_start(%rip), %rbx
    leaq    rela_end(%rip), %rcx
4:  cmpq    %rcx, %rbx
    jae     5f
    movq    (%rbx), %rdx
    movq    16(%rbx), %rax
    addq    %rbp, %rax
    movq    %rax, (%rbp, %rdx)
    addq    $24, %rbx
    jmp     4b
5:  leaq    stacks(%rip), %rsp
    addq    ${stack_size}, %rsp
    leaq    numbers(%rip), %rax
    movq    %rax, %rdx
    shrq    $32, %rdx
    movl    $0xc0000101, %ecx           // IA32_GS_BASE: this CPU's number
    wrmsr
    xorl    %ebp, %ebp
    call    boot
6:  hlt
    jmp     6b

// Another CPU: copied to a page of the first MiB. It goes to what it finds behind itself.
.section .rodata.other, "a"
.code16
.global other
other:
    cli
    movw    %cs, %ax
    movw    %ax, %ds
    xorl    %ebp, %ebp
    movw    %ax, %bp
    shll    $4, %ebp
    leal    (other_gdt - other)(%ebp), %eax
    movl    %eax, (other_gdtr - other + 2)
    leal    (other_32 - other)(%ebp), %eax
    movl    %eax, (other_far - other)
    leal    (other_64 - other)(%ebp), %eax
    movl    %eax, (other_far64 - other)
    lgdtl   (other_gdtr - other)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   *(other_far - other)
.code32
other_32:
    movw    $16, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movl    %cr4, %eax
    orl     $0x20, %eax
    movl    %eax, %cr4
    movl    (other_cr3 - other)(%ebp), %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80010000, %eax
    movl    %eax, %cr0
    ljmpl   *(other_far64 - other)(%ebp)
.code64
other_64:
    movl    %ebp, %ebp
    movq    (other_stack - other)(%rbp), %rsp
    movq    (other_entry - other)(%rbp), %rsi
    movq    (other_number - other)(%rbp), %rax
    movq    %rax, %rdx
    shrq    $32, %rdx
    movl    $0xc0000101, %ecx           // IA32_GS_BASE: this CPU's number
    wrmsr
    xorl    %ebp, %ebp
    callq   *%rsi
7:  hlt
    jmp     7b
.balign 8
other_gdt:                              // 64-bit code and data are where the boot CPU has them
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
other_gdtr:
    .short 31
    .long 0
other_far:
    .long 0
    .short 24
other_far64:
    .long 0
    .short 8
.balign 8
.global other_words
other_words:
other_cr3:
    .quad 0
other_stack:
    .quad 0
other_entry:
    .quad 0
other_number:
    .quad 0
.global other_end
other_end:

.section .text
.code64
// A stub for each vector: the error code, 0 where the CPU stores none, and the vector; then all registers.
.balign 16
.global exception_stubs
exception_stubs:
.set vector, 0
.rept 48
.balign 16
.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq   $0
.endif
    pushq   $vector
    jmp     exception_entry
.set vector, vector + 1
.endr
exception_entry:
    cld
    pushq   %rax
    pushq   %rbx
    pushq   %rcx
    pushq   %rdx
    pushq   %rbp
    pushq   %rsi
    pushq   %rdi
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    movq    %rsp, %rdi
    call    exception
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rdi
    popq    %rsi
    popq    %rbp
    popq    %rdx
    popq    %rcx
    popq    %rbx
    popq    %rax
    addq    $16, %rsp
    iretq

.section .data
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdtr:
    .short 23
    .long 0

.section .bss, "aw", @nobits
.balign 4096
.global tables
tables:
    .skip 6 * 4096
.global stacks
stacks:
    .skip {stack_size} * {cpus}
