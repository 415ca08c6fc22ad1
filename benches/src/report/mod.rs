//! What people read: a table on the terminal and one HTML page.

pub(crate) mod html;
pub(crate) mod plots;
pub(crate) mod table;

/// Bytes as people say them.
pub(crate) fn size(bytes: u32) -> String {
    let digits = bytes.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + " B"
}

/// Microseconds with as many digits as say something.
pub(crate) fn micros(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_grouped() {
        assert_eq!(super::size(64), "64 B");
        assert_eq!(super::size(602_112), "602,112 B");
        assert_eq!(super::size(3_244_800), "3,244,800 B");
    }
}
