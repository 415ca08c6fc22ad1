//! Names of output files: what a server calls its outputs never leaves the directory.

use std::collections::HashSet;

/// Longest file name made from an output's name, without extension and number.
const MAX_STEM: usize = 100;

/// Gives each name a file name of its own: letters, digits, `-`, `_` and `.` stay, all else becomes `_`; two that come
/// out alike (in whatever case, since some file systems do not tell) are numbered.
pub(crate) fn file_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut files = Vec::new();
    for name in names {
        let stem = sanitised(name);
        let mut file = format!("{stem}.npy");
        let mut number = 2;
        while !taken.insert(file.to_ascii_lowercase()) {
            file = format!("{stem}-{number}.npy");
            number += 1;
        }
        files.push(file);
    }
    files
}

fn sanitised(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut stem: String = name.chars().take(MAX_STEM).map(|c| if keep(c) { c } else { '_' }).collect();
    // No hidden files, no `..`, no options.
    if !stem.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        stem.insert(0, '_');
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_in_the_directory() {
        let names = ["../../etc/passwd", "..", "", "/", "a\0b", "-rf", "ü", "con/../x", ".hidden"];
        for file in file_names(names) {
            assert!(!file.contains(['/', '\\', '\0']) && !file.starts_with(['.', '-']), "{file}");
        }
        assert!(file_names([&*"x".repeat(5000)])[0].len() < 128);
    }

    #[test]
    fn names_that_come_out_alike_are_kept_apart() {
        assert_eq!(file_names(["a/b", "a_b", "A_B", "a_b-2"]), ["a_b.npy", "a_b-2.npy", "A_B-3.npy", "a_b-2-2.npy"]);
        assert_eq!(file_names(["OUTPUT", "y.1"]), ["OUTPUT.npy", "y.1.npy"]);
    }
}
