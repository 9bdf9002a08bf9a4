"""guests/common, through small guests of the tests' own: output, traps, frames, page tables, CPL 3."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "guests/README.md"

Build = Callable[[str, str, str], Path]
Boot = Callable[..., tuple[int, str]]

TOML = """name = "tiny"\ndescription = "of a test"\ntouches = "64K"\n"""


@pytest.fixture
def run(build: Build, boot: Boot) -> Callable[..., tuple[int, str]]:
    """Build and boot a guest whose main() has this body."""

    def one(body: str, before: str = "", append: str = "") -> tuple[int, str]:
        unused = "(void)argc, (void)argv;"
        source = f'#include "guest.h"\n{before}\nint main(int argc, char **argv)\n{{\n{unused}\n{body}\n}}\n'
        return boot(build("tiny", TOML, source), append)

    return one


def test_the_example_of_the_readme_builds_and_runs(build: Build, boot: Boot) -> None:
    text = README.read_text()
    blocks = dict(re.findall(r"^```(toml|c)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    image = build("count", blocks["toml"], blocks["c"])
    assert boot(image) == (0, f"count: ok checksum=0x{sum(range(1024)):016x}\n")
    assert boot(image, "limit=10") == (0, f"count: ok checksum=0x{45:016x}\n")


def test_printf_formats_as_in_c(run: Boot) -> None:
    status, output = run(
        """
        printf("%d|%i|%u|%x|%c|%s|%%\\n", -5, 7, 4000000000u, 0xbeef, 'z', "text");
        printf("%5d|%-5d|%05d|%05d|%3d\\n", 42, 42, 42, -42, 12345);
        printf("%ld|%lu|%lx|%016lx\\n", -(1L << 62) * 2, ~0UL, ~0UL, 0xabcUL);
        printf("%6s|%-6s|%p\\n", "ab", "ab", (void *)0x1000);
        return 5;
        """
    )
    assert status == 5
    assert output.splitlines() == [
        "-5|7|4000000000|beef|z|text|%",
        "   42|42   |00042|-0042|12345",
        "-9223372036854775808|18446744073709551615|ffffffffffffffff|0000000000000abc",
        "    ab|ab    |0000000000001000",
    ]


def test_string_functions_handle_overlap_and_order(run: Boot) -> None:
    status, output = run(
        """
        char text[] = "0123456789abcdef";
        memmove(text + 2, text, 13);
        printf("%s\\n", text);
        memmove(text, text + 3, 13);
        printf("%s\\n", text);
        memset(text + 1, '-', 11);
        printf("%s %lu\\n", text, strlen(text));
        printf("%d %d %d\\n", strcmp("a", "b") < 0, strncmp("abc", "abd", 2), memcmp("b", "a", 1) > 0);
        return 0;
        """
    )
    assert status == 0
    assert output.splitlines() == ["010123456789abcf", "123456789abcfbcf", "1-----------fbcf 16", "1 0 1"]


def test_numbers_take_suffixes_and_refuse_overflow(run: Boot) -> None:
    status, output = run(
        """
        for (int i = 1; i < argc; i++) {
                u64 value = 0;
                bool good = parse_size(argv[i], &value);
                printf("%d %lu\\n", good, value);
        }
        return 0;
        """,
        append="12 0x1F 3k 4M 5G 16777215G 18446744073709551615 17179869184G 18446744073709551616 1kk k 0x -1 1e",
    )
    assert status == 0
    good = [12, 31, 3 << 10, 4 << 20, 5 << 30, 16777215 << 30, 2**64 - 1]
    assert output.splitlines() == [f"1 {value}" for value in good] + ["0 0"] * 7


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('__asm__ volatile("ud2");', r"trap vector=6 error=0x0 rip=[0-9a-f]{16} .* cs=0x8"),
        ("*(volatile u64 *)0x8000000010 = 1;", r"trap vector=14 error=0x2 rip=[0-9a-f]{16} cr2=0000008000000010 .*"),
        ('__asm__ volatile("int $0x2a");', r"trap vector=13 error=0x[0-9a-f]+ .*"),
        # The push of the #PF frame faults too, and #DF finds its own stack.
        ('__asm__ volatile("mov $0x8000000000, %rsp; push %rax");', r"trap vector=8 error=0x0 .*"),
    ],
)
def test_unhandled_trap_is_printed_and_ends_with_33(run: Boot, body: str, line: str) -> None:
    status, output = run(f"{body}\nreturn 0;")
    assert status == 33
    assert re.fullmatch(rf"tiny: {line}\n", output)


def test_handler_sees_and_changes_the_registers(run: Boot) -> None:
    status, _ = run(
        """
        u64 rbx = 40, r15 = 2;
        set_handler(VECTOR_UD, on_ud);
        __asm__ volatile("mov %0, %%rbx; mov %1, %%r15; ud2; mov %%rbx, %0; mov %%r15, %1"
                         : "+r"(rbx), "+r"(r15) : : "rbx", "r15");
        return rbx == 42 && r15 == 2 ? 9 : 1;
        """,
        before="static void on_ud(struct trap_frame *f) { f->rbx += f->r15; f->rip += 2; }",
    )
    assert status == 9


def test_last_freed_frame_is_reused_first(run: Boot) -> None:
    status, _ = run(
        """
        u64 a = frame_alloc(), b = frame_alloc(), left = ram_left(), *c;
        frame_free(a);
        frame_free(b);
        if (frame_alloc() != b || (c = (u64 *)frame_alloc_zeroed()) != (u64 *)a || c[0] || ram_left() != left)
                return 1;
        return (u64)ram_alloc(1, 1 << 20) % (1 << 20) ? 2 : 9;
        """
    )
    assert status == 9


def test_tables_are_made_pruned_and_destroyed(run: Boot) -> None:
    status, output = run(
        """
        u64 root = space_create(), gva = FIRST_GVA + (5UL << 30), frame = frame_alloc(), left;
        printf("%lx\\n", map_page(root, gva, frame, PT_PRESENT | PT_WRITABLE) ^ 0);
        printf("%d\\n", (*table_entry(root, gva, 1, false) & ~PT_ADDR_MASK) == (PT_PRESENT | PT_WRITABLE));
        printf("%d\\n", table_entry(root, gva + (1UL << 30), 1, false) == NULL);
        printf("%d\\n", prune_tables(root, gva));
        printf("%d\\n", unmap_page(root, gva) == (frame | PT_PRESENT | PT_WRITABLE));
        printf("%d %lx\\n", prune_tables(root, gva), *table_entry(root, gva, 4, false));
        map_page(root, gva, frame, PT_PRESENT);
        left = ram_left();
        space_destroy(root);
        for (int i = 0; i < 4; i++)
                frame_alloc();
        printf("%d\\n", left == ram_left());
        return 0;
        """
    )
    assert status == 0
    assert output.split() == ["0", "1", "1", "0", "1", "3", "0", "1"]


def test_program_at_cpl_3_calls_back_and_exits(run: Boot) -> None:
    status, output = run(
        """
        u64 root = space_create(), gva = FIRST_GVA;
        map_page(root, gva, (u64)_user_start, PT_PRESENT | PT_USER);
        map_page(root, gva + PAGE_SIZE, frame_alloc_zeroed(), PT_PRESENT | PT_USER | PT_WRITABLE);
        write_cr3(root);
        set_handler(VECTOR_GP, on_gp);
        printf("%lu\\n", enter_user(gva, gva + 2 * PAGE_SIZE, 5, on_syscall));
        printf("%lu\\n", enter_user(gva, gva + 2 * PAGE_SIZE, 6, on_syscall));
        return 0;
        """,
        before="""
        extern u8 _user_start[];
        static void on_gp(struct trap_frame *f) { printf("#GP at CPL %lu\\n", f->cs & 3); f->rip += 1; }
        static u64 on_syscall(u64 number, u64 a, u64 b, u64 c) { return number * 1000 + a * 100 + b * 10 + c; }
        __asm__(".pushsection .user, \\"ax\\"\\n"
                "push %rdi\\n mov $7, %eax\\n mov $1, %esi\\n mov $2, %edx\\n int $0x80\\n"
                "pop %rdi\\n add %rax, %rdi\\n hlt\\n mov $0, %eax\\n int $0x80\\n .popsection");
        """,
    )
    assert status == 0
    assert output.splitlines() == ["#GP at CPL 3", "7517", "#GP at CPL 3", "7618"]
