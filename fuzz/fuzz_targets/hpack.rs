//! Any block into the decoder: no panic, bounded work; and what the encoder writes comes back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prism_fuzz::bounded;
use prism_io::h2::hpack::{Decoder, Encoder, Indexing, huffman};

fuzz_target!(|data: &[u8]| bounded((64 << 10) + 64 * data.len(), || code(data)));

fn code(data: &[u8]) {
    let mut decoder = Decoder::new();
    for block in data.split(|&byte| byte == 0xfe) {
        let mut fields = 0;
        let result = decoder.decode(block, |field| {
            fields += 1;
            assert!(field.name.len() + field.value.len() <= 4096 + block.len() * 8 / 5);
        });
        assert!(fields <= block.len());
        assert!(decoder.table().size() <= 4096);
        if result.is_err() {
            break;
        }
    }

    let mut encoder = Encoder::new(4096);
    let mut decoder = Decoder::new();
    for (nth, part) in data.chunks(24).enumerate() {
        let (name, value) = part.split_at(part.len().min(1 + usize::from(part[0] % 16)));
        let indexing = [Indexing::Index, Indexing::Plain, Indexing::Never][nth % 3];
        let mut block = Vec::new();
        if part[0] == 0 {
            encoder.set_table_bytes_max(part.len() * 40 % 4097);
        }
        encoder.begin(&mut block);
        encoder.field(&mut block, name, value, indexing);
        encoder.field(&mut block, name, value, indexing);
        let mut seen = 0;
        decoder
            .decode(&block, |field| {
                assert_eq!((field.name, field.value), (name, value));
                assert_eq!(field.sensitive, indexing == Indexing::Never);
                seen += 1;
            })
            .expect("our own block");
        assert_eq!(seen, 2);
    }

    let (mut coded, mut plain) = (Vec::new(), Vec::new());
    huffman::encode(data, &mut coded);
    huffman::decode(&coded, &mut plain).expect("our own coding");
    assert_eq!(plain, data);
    plain.clear();
    if huffman::decode(data, &mut plain).is_ok() {
        coded.clear();
        huffman::encode(&plain, &mut coded);
        assert_eq!(coded, data);
    }
}
