//! Compiles `board.toml` in.

fn main() {
    board_file::generate();
}
