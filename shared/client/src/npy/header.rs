//! The header: a magic string, a version, and a Python dictionary literal.

use std::io::Read;

use super::{NpyError, checked_dims};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read; real ones have a hundred bytes or so.
const MAX_HEADER: u32 = 64 << 10;
/// Array data begins at a multiple of this.
const ALIGN: usize = 64;

/// One element as the file stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// NumPy's letter: b, u, i, f, S, U or V.
    pub(super) kind: char,
    /// Bytes in the file.
    pub(super) size: u32,
    pub(super) big_endian: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) element: Element,
    pub(super) fortran: bool,
    pub(super) dims: Vec<u32>,
}

impl Layout {
    /// Bytes of the array in the file, or `None` past `u64`.
    pub(super) fn stored_bytes(&self) -> Option<u64> {
        self.dims.iter().try_fold(u64::from(self.element.size), |n, &d| n.checked_mul(d.into()))
    }
}

pub(super) fn read(input: &mut impl Read) -> Result<Layout, NpyError> {
    let mut start = [0; 8];
    input.read_exact(&mut start).map_err(|_| NpyError::NotNpy)?;
    if &start[..6] != MAGIC {
        return Err(NpyError::NotNpy);
    }
    let length = match start[6] {
        1 => {
            let mut bytes = [0; 2];
            input.read_exact(&mut bytes)?;
            u16::from_le_bytes(bytes).into()
        }
        2 | 3 => {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes)?;
            u32::from_le_bytes(bytes)
        }
        version => return Err(NpyError::Unsupported(format!("version {version} of the .npy format"))),
    };
    if length > MAX_HEADER {
        return Err(NpyError::BadHeader("it is too long"));
    }
    let mut text = vec![0; length as usize];
    input.read_exact(&mut text)?;
    parse(std::str::from_utf8(&text).map_err(|_| NpyError::BadHeader("it is not text"))?)
}

pub(super) fn write(descr: &str, dims: &[u32]) -> Vec<u8> {
    let mut shape: String = dims.iter().map(|d| format!("{d}, ")).collect();
    // Python writes (3,) for one dimension, (3, 4) for more.
    shape.truncate(shape.len().saturating_sub(if dims.len() == 1 { 1 } else { 2 }));
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGN) - unpadded));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[1, 0]);
    // At most eight dimensions of ten digits: far below 65,536.
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn parse(text: &str) -> Result<Layout, NpyError> {
    let (mut descr, mut fortran, mut dims) = (None, None, None);
    let mut p = Parser { rest: text };
    p.expect('{')?;
    while !p.take('}') {
        let key = p.string()?;
        p.expect(':')?;
        let fresh = match key {
            "descr" if p.peek() == Some('[') => {
                return Err(NpyError::Unsupported("records (structured types); save one field a file".into()));
            }
            "descr" => descr.replace(p.string()?).is_none(),
            "fortran_order" => fortran.replace(p.boolean()?).is_none(),
            "shape" => dims.replace(p.tuple()?).is_none(),
            _ => return Err(NpyError::BadHeader("it has an unknown key")),
        };
        if !fresh {
            return Err(NpyError::BadHeader("a key stands twice"));
        }
        if !p.take(',') && p.peek() != Some('}') {
            return Err(NpyError::BadHeader("a comma is missing"));
        }
    }
    if p.peek().is_some() {
        return Err(NpyError::BadHeader("there is text behind the dictionary"));
    }
    match (descr, fortran, dims) {
        (Some(descr), Some(fortran), Some(dims)) => {
            Ok(Layout { element: element(descr)?, fortran, dims: checked_dims(&dims)? })
        }
        _ => Err(NpyError::BadHeader("descr, fortran_order or shape is missing")),
    }
}

fn element(descr: &str) -> Result<Element, NpyError> {
    let unsupported = |what: &str| Err(NpyError::Unsupported(format!("elements of type '{descr}'{what}")));
    let mut chars = descr.chars();
    let mut next = chars.next();
    let mut big_endian = false;
    if let Some(order @ ('<' | '>' | '=' | '|')) = next {
        big_endian = order == '>' || (order == '=' && cfg!(target_endian = "big"));
        next = chars.next();
    }
    let (Some(kind), Ok(count)) = (next, chars.as_str().parse::<u32>()) else {
        return match next {
            Some('O') => unsupported(" (Python objects); convert with .astype first"),
            Some('?') if chars.as_str().is_empty() => Ok(Element { kind: 'b', size: 1, big_endian }),
            _ => unsupported(""),
        };
    };
    let size = if kind == 'U' { count.checked_mul(4) } else { Some(count) };
    let size = size.ok_or(NpyError::BadHeader("an element is too long"))?;
    match (kind, size) {
        ('b', 1) | ('u' | 'i', 1 | 2 | 4 | 8) | ('f', 2 | 4 | 8) | ('V', 2) | ('S' | 'U', _) => {
            Ok(Element { kind, size, big_endian })
        }
        ('c', _) => unsupported(" (complex numbers); save real and imaginary parts apart"),
        ('M' | 'm', _) => unsupported(" (dates and times); convert to int64 with .view first"),
        ('f', _) => unsupported(" (extended precision); convert with .astype('f8') first"),
        _ => unsupported(""),
    }
}

/// Reads as much of Python's literal syntax as such headers use.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), NpyError> {
        if self.take(wanted) { Ok(()) } else { Err(NpyError::BadHeader("it is not a Python dictionary")) }
    }

    fn string(&mut self) -> Result<&'a str, NpyError> {
        let bad = NpyError::BadHeader("a string is malformed");
        let quote = match self.peek() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return Err(bad),
        };
        let (text, rest) = self.rest[1..].split_once(quote).ok_or(bad)?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(NpyError::BadHeader("fortran_order is neither True nor False"))
    }

    fn tuple(&mut self) -> Result<Vec<u64>, NpyError> {
        let bad = || NpyError::BadHeader("shape is not a tuple of numbers");
        if !self.take('(') {
            return Err(bad());
        }
        let mut dims = Vec::new();
        while !self.take(')') {
            self.peek();
            let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            dims.push(self.rest[..digits].parse().map_err(|_| bad())?);
            self.rest = &self.rest[digits..];
            // Python 2 wrote its long integers with an L.
            self.take('L');
            if !self.take(',') && self.peek() != Some(')') {
                return Err(bad());
            }
        }
        Ok(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_style_are_read() {
        let layout = |text| parse(text).unwrap();
        let four = Element { kind: 'f', size: 4, big_endian: false };
        let expected = Layout { element: four, fortran: false, dims: vec![3, 4] };
        assert_eq!(layout("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n"), expected);
        assert_eq!(layout("{\"shape\":(3L,4L),\"descr\":\"<f4\",\"fortran_order\":False}"), expected);
        assert_eq!(layout("{'descr':'<f4','fortran_order':True,'shape':()}").dims, [0; 0]);
        assert!(layout("{'descr':'>i8','fortran_order':True,'shape':(7,)}").element.big_endian);
    }

    #[test]
    fn what_is_not_carried_is_refused_by_name() {
        let refused = |descr: &str| {
            parse(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}")).unwrap_err().to_string()
        };
        assert!(refused("'|O'").contains("Python objects"));
        assert!(refused("'<c16'").contains("complex"));
        assert!(refused("'<M8[ns]'").contains("M8"));
        assert!(refused("'<f16'").contains("extended precision"));
        assert!(refused("[('a', '<f4')]").contains("records"));
        assert!(refused("'<i3'").contains("i3"));
        assert!(refused("'<U4294967295'").contains("too long"));
    }

    #[test]
    fn written_headers_are_aligned_and_read_back() {
        for dims in [&[][..], &[5], &[2, 3], &[u32::MAX; 8]] {
            let bytes = write("<f8", dims);
            assert_eq!(bytes.len() % ALIGN, 0);
            assert_eq!(read(&mut &bytes[..]).unwrap().dims, dims);
        }
        assert!(String::from_utf8_lossy(&write("<f8", &[5])).contains("(5,)"));
    }
}
