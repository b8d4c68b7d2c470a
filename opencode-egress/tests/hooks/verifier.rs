//! What the programs cost the kernel's verifier, which refuses those that take it a million steps.

use opencode_egress::kernel::{
    hooks::to_load,
    loader::{Lifetime, load},
};

/// Other kernels take more steps for the same program, and other compilers make another one of it.
const MOST: u32 = 100_000;

/// `cargo xtask vm-test --kernel … verifier` makes a row of docs/kernels.md of what this prints.
#[test]
fn programs_are_far_below_the_verifiers_limit() {
    let loaded = load(&Lifetime::Process).expect("the kernel side loads (root is needed)");
    let mut too_many = vec![];
    for hook in to_load(&loaded.programs.features()) {
        let program = loaded.programs.program(hook).expect("a program");
        // Linux 5.16 and newer say it.
        let Some(steps) = program.info().expect("its info").verified_instruction_count() else {
            eprintln!("skipped: this kernel does not say what a program took its verifier");
            return;
        };
        println!("verifier steps: {} {steps}", hook.name());
        if steps > MOST {
            too_many.push((hook.name(), steps));
        }
    }
    assert!(too_many.is_empty(), "more than {MOST} steps: {too_many:?}");
}
