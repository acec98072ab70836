//! The record that a program leaves to its successor: a sealed file in memory, of sections each with its length. What is in
//! it was written by another version of lbd, maybe by a wrong one: it is taken whole and right, or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The versions of the record that this program reads, the last of which it writes. To be raised by whatever makes an older
/// program misread it: the workers' sections are not self-describing, those of the daemon are. The same goes for the argument
/// by which a successor is told where it is.
pub const VERSIONS: RangeInclusive<u32> = 1..=1;

const MAGIC: [u8; 8] = *b"lbd\0over";
/// Magic, version, checksum, length of the sections.
const HEAD: usize = 8 + 4 + 4 + 8;
/// The longest record that is read: a hundred times what a million sessions take would be an error of its writer.
const MOST: u64 = 8 << 30;

/// A record that nobody can change any more.
///
/// # Errors
/// There is no memory or descriptor left.
pub fn write(sections: &[impl AsRef<[u8]>]) -> io::Result<File> {
    let mut body = Vec::with_capacity(sections.iter().map(|section| section.as_ref().len() + 8).sum());
    for section in sections.iter().map(AsRef::as_ref) {
        body.extend_from_slice(&(section.len() as u64).to_le_bytes());
        body.extend_from_slice(section);
    }
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSIONS.end().to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    head.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let mut file = File::from(memfd_create("lbd-upgrade", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(&head)?;
    file.write_all(&body)?;
    let sealed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(sealed))?;
    Ok(file)
}

/// The sections of a record.
///
/// # Errors
/// It is not sealed, not whole, damaged, or of a version that this program does not read.
pub fn read(file: &File, versions: &RangeInclusive<u32>) -> Result<Vec<Vec<u8>>, String> {
    let wrong = |e: io::Error| format!("the record cannot be read: {e}");
    is_sealed(file)?;
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0).map_err(wrong)?;
    let (magic, rest) = head.split_at(8);
    let field = |at: usize| [rest[at], rest[at + 1], rest[at + 2], rest[at + 3]];
    let (version, checksum) = (u32::from_le_bytes(field(0)), u32::from_le_bytes(field(4)));
    let length = u64::from(u32::from_le_bytes(field(8))) | u64::from(u32::from_le_bytes(field(12))) << 32;
    if magic != MAGIC {
        return Err("the record is none of lbd's".into());
    }
    if !versions.contains(&version) {
        let (oldest, newest) = (versions.start(), versions.end());
        return Err(format!("the record has version {version}; this lbd reads {oldest} to {newest}"));
    }
    let there = file.metadata().map_err(wrong)?.len();
    if length > MOST || there != length + HEAD as u64 {
        return Err(format!(
            "the record has {there} bytes and says that it has {}",
            length.saturating_add(HEAD as u64)
        ));
    }
    let mut body = vec![0; length as usize];
    file.read_exact_at(&mut body, HEAD as u64).map_err(wrong)?;
    if crc32fast::hash(&body) != checksum {
        return Err("the record is damaged: its checksum is another one".into());
    }
    split(&body).ok_or_else(|| "the record is damaged: its sections do not fill it".into())
}

/// Whether this may be a record at all: only what is sealed says the same to whoever reads it next.
///
/// # Errors
/// It is something else, or closed.
pub fn is_sealed(file: impl AsFd) -> Result<(), String> {
    let fd = file.as_fd().as_raw_fd();
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_err(|e| format!("descriptor {fd} is no record: {}", e.desc()))?;
    if SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
        Ok(())
    } else {
        Err(format!("descriptor {fd} is no record: it is not sealed"))
    }
}

fn split(mut body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut sections = Vec::new();
    while !body.is_empty() {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let (section, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        sections.push(section.to_vec());
        body = rest;
    }
    Some(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Vec<u8>> {
        vec![b"{}".to_vec(), Vec::new(), vec![7; 100_000]]
    }

    /// The same bytes but for one change, sealed or not.
    fn altered(change: impl Fn(&mut Vec<u8>), sealed: bool) -> File {
        let record = write(&sections()).unwrap();
        let mut bytes = vec![0; record.metadata().unwrap().len() as usize];
        record.read_exact_at(&mut bytes, 0).unwrap();
        change(&mut bytes);
        let mut file = File::from(memfd_create("altered", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.write_all(&bytes).unwrap();
        if sealed {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK)).unwrap();
        }
        file
    }

    #[test]
    fn a_record_is_read_as_it_was_written_as_often_as_asked_and_cannot_be_changed() {
        let record = write(&sections()).unwrap();
        assert_eq!(read(&record, &VERSIONS).unwrap(), sections());
        assert_eq!(read(&record, &VERSIONS).unwrap(), sections(), "whoever falls back reads it again");
        assert!(record.write_at(b"x", 0).is_err() && record.set_len(3).is_err());
        assert_eq!(read(&write(&[b""; 0]).unwrap(), &VERSIONS).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn what_is_not_whole_and_right_is_refused_with_its_reason() {
        type Change = fn(&mut Vec<u8>);
        for (change, sealed, why) in [
            ((|b| b[0] = b'x') as Change, true, "none of lbd's"),
            (|b| b[8] = 99, true, "has version 99; this lbd reads 1 to 1"),
            (|b| b[HEAD] ^= 1, true, "its checksum is another one"),
            (|b| b.truncate(b.len() - 1), true, "says that it has"),
            (|b| b.truncate(10), true, "cannot be read"),
            (|b| b[23] = 0xff, true, "says that it has"),
            (|_| (), false, "is not sealed"),
        ] {
            let error = read(&altered(change, sealed), &VERSIONS).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(split(&[1, 0, 0, 0, 0, 0, 0, 0]).is_none() && split(&[1, 2]).is_none() && split(&[0xff; 8]).is_none());
    }
}
