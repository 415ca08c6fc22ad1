//! Between the file's elements and the wire's.

use splitrpc_wire::DType;

use super::NpyError;
use super::header::Element;

/// Most bytes that strings padded to equal length may take when written.
const MAX_PADDED: u64 = 1 << 30;

/// Turns column-major data into row-major.
pub(super) fn to_row_major(data: &[u8], dims: &[u32], size: usize) -> Vec<u8> {
    // The data is as long as dims and size say, so if it is empty there is nothing to order.
    if data.is_empty() || dims.len() < 2 {
        return data.to_vec();
    }
    let mut strides = vec![size; dims.len()];
    for i in 1..dims.len() {
        strides[i] = strides[i - 1] * dims[i - 1] as usize;
    }
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0u32; dims.len()];
    loop {
        let from: usize = index.iter().zip(&strides).map(|(&i, s)| i as usize * s).sum();
        out.extend_from_slice(&data[from..from + size]);
        let mut axis = dims.len();
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// Row-major data as the wire carries it.
pub(super) fn to_wire(mut data: Vec<u8>, element: Element, limit: u64) -> Result<(DType, Vec<u8>), NpyError> {
    let dtype = match (element.kind, element.size) {
        ('S', _) => return Ok((DType::Bytes, strings(&data, element, limit)?)),
        ('U', _) => return Ok((DType::Bytes, strings(&data, element, limit)?)),
        ('b', _) => {
            data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
            DType::Bool
        }
        ('u', 1) => DType::Uint8,
        ('u', 2) => DType::Uint16,
        ('u', 4) => DType::Uint32,
        ('u', _) => DType::Uint64,
        ('i', 1) => DType::Int8,
        ('i', 2) => DType::Int16,
        ('i', 4) => DType::Int32,
        ('i', _) => DType::Int64,
        ('f', 2) => DType::Fp16,
        ('f', 4) => DType::Fp32,
        ('f', _) => DType::Fp64,
        _ => DType::Bf16,
    };
    if element.big_endian && element.size > 1 {
        data.chunks_exact_mut(element.size as usize).for_each(<[u8]>::reverse);
    }
    Ok((dtype, data))
}

/// Strings without their padding, each behind its length.
fn strings(data: &[u8], element: Element, limit: u64) -> Result<Vec<u8>, NpyError> {
    if element.size == 0 {
        return Err(NpyError::Unsupported("strings of length 0".into()));
    }
    let mut out = Vec::new();
    let mut text = Vec::new();
    for item in data.chunks_exact(element.size as usize) {
        text.clear();
        if element.kind == 'S' {
            text.extend_from_slice(item);
        } else {
            for unit in item.as_chunks::<4>().0 {
                let code = if element.big_endian { u32::from_be_bytes(*unit) } else { u32::from_le_bytes(*unit) };
                let c = char::from_u32(code).ok_or(NpyError::BadTensor("a string is not Unicode"))?;
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        let end = text.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
        // An element's bytes fit `u32` in the file, and UTF-8 is never longer than what it came from.
        out.extend_from_slice(&(end as u32).to_le_bytes());
        out.extend_from_slice(&text[..end]);
        if out.len() as u64 > limit {
            return Err(NpyError::TooLarge { bytes: out.len() as u64, limit });
        }
    }
    Ok(out)
}

/// NumPy's name for the type, and the data where it must be changed.
pub(super) fn from_wire(dtype: DType, elements: u64, data: &[u8]) -> Result<(String, Option<Vec<u8>>), NpyError> {
    let descr = match dtype {
        DType::Bool => "|b1",
        DType::Uint8 => "|u1",
        DType::Uint16 => "<u2",
        DType::Uint32 => "<u4",
        DType::Uint64 => "<u8",
        DType::Int8 => "|i1",
        DType::Int16 => "<i2",
        DType::Int32 => "<i4",
        DType::Int64 => "<i8",
        DType::Fp16 => "<f2",
        DType::Fp32 => "<f4",
        DType::Fp64 => "<f8",
        DType::Bf16 => {
            let widened = data.as_chunks::<2>().0.iter().flat_map(|b| [0, 0, b[0], b[1]]).collect();
            return Ok(("<f4".into(), Some(widened)));
        }
        DType::Bytes => {
            let (longest, padded) = padded(elements, data)?;
            return Ok((format!("|S{longest}"), Some(padded)));
        }
    };
    Ok((descr.into(), None))
}

fn padded(elements: u64, data: &[u8]) -> Result<(usize, Vec<u8>), NpyError> {
    let (mut items, mut rest, mut longest) = (Vec::new(), data, 1);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (item, after) = after.split_at_checked(length).ok_or(NpyError::BadTensor("a string is cut off"))?;
        if item.last() == Some(&0) {
            return Err(NpyError::Unsupported("a string that ends in a zero byte, which NumPy would drop".into()));
        }
        longest = longest.max(length);
        items.push(item);
        rest = after;
    }
    if !rest.is_empty() || items.len() as u64 != elements {
        return Err(NpyError::BadTensor("it has more or fewer strings than its shape says"));
    }
    let bytes = (items.len() as u64).saturating_mul(longest as u64);
    if bytes > MAX_PADDED {
        return Err(NpyError::TooLarge { bytes, limit: MAX_PADDED });
    }
    let mut out = vec![0; bytes as usize];
    for (room, item) in out.chunks_exact_mut(longest).zip(items) {
        room[..item.len()].copy_from_slice(item);
    }
    Ok((longest, out))
}
