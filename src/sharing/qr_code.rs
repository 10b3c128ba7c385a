//! A link as a QR code (ISO/IEC 18004), to print or to show.

use qrcode::{Color, EcLevel, QrCode, render::svg, types::QrError};

/// The width of the margin that scanners need, in modules: the standard's *quiet zone*.
const QUIET_ZONE: usize = 4;

/// An image of a QR code can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the text is too long for a QR code")]
    TooLong(#[from] QrError),
    #[error("the image cannot be encoded")]
    Png(#[from] png::EncodingError),
}

/// A QR code. Error correction M: up to 15 % of it may be dirty or covered.
pub struct Image {
    code: QrCode,
    /// The width and height of a module, in pixels.
    scale: usize,
}

impl Image {
    /// An image at least `width` pixels wide, and wider by less than one pixel for each module, because every module must be
    /// equally wide.
    pub fn new(text: &str, width: u16) -> Result<Self, Error> {
        let code = QrCode::with_error_correction_level(text, EcLevel::M)?;
        let modules = code.width() + 2 * QUIET_ZONE;
        let scale = usize::from(width).div_ceil(modules);
        Ok(Self { code, scale })
    }

    /// The image as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let scale = u32::try_from(self.scale).unwrap_or(u32::MAX);
        self.code
            .render::<svg::Color<'_>>()
            .quiet_zone(true)
            .module_dimensions(scale, scale)
            .build()
    }

    /// The image as a PNG, in black and white.
    pub fn png(&self) -> Result<Vec<u8>, Error> {
        let modules = self.code.width();
        let width = (modules + 2 * QUIET_ZONE) * self.scale;
        let colors = self.code.to_colors();
        let is_dark = |x: usize, y: usize| {
            let at = |pixel: usize| (pixel / self.scale).checked_sub(QUIET_ZONE);
            match (at(x), at(y)) {
                (Some(x), Some(y)) if x < modules && y < modules => {
                    colors[y * modules + x] == Color::Dark
                }
                _ => false,
            }
        };
        // One bit for each pixel, the leftmost one first, and each row begins with a new byte.
        let mut pixels = Vec::with_capacity(width.div_ceil(8) * width);
        for y in 0..width {
            for first in (0..width).step_by(8) {
                let light = (first..first + 8).map(|x| u8::from(!is_dark(x, y)));
                pixels.push(light.fold(0, |byte, bit| byte << 1 | bit));
            }
        }

        let mut image = Vec::new();
        let side = u32::try_from(width).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(&mut image, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a code as a scanner does. `is_dark` says so for each pixel.
    fn scanned(width: usize, is_dark: impl Fn(usize, usize) -> bool) -> String {
        let grey = |x, y| if is_dark(x, y) { 0 } else { 255 };
        let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, width, grey);
        let codes = picture.detect_grids();
        let (meta, text) = codes[0].decode().expect("the code is readable");
        assert_eq!(meta.ecc_level, 0, "the format's number of level M");
        text
    }

    fn scanned_png(image: &[u8]) -> (usize, String) {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(image));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        let width = frame.width as usize;
        assert_eq!(frame.height, frame.width);
        (width, scanned(width, |x, y| pixels[y * width + x] == 0))
    }

    /// The image consists of a white rectangle and one path of black rectangles.
    fn scanned_svg(image: &str) -> (usize, String) {
        let (_, width) = image.split_once(" width=\"").unwrap();
        let width: usize = width.split_once('"').unwrap().0.parse().unwrap();
        let (_, path) = image.split_once(" d=\"").unwrap();
        let mut dark = vec![false; width * width];
        for rectangle in path.split_once('"').unwrap().0.split('M').skip(1) {
            let numbers: Vec<usize> = rectangle
                .split(|letter: char| !letter.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            let (left, top, wide, high) = (numbers[0], numbers[1], numbers[2], numbers[3]);
            for y in top..top + high {
                dark[y * width + left..y * width + left + wide].fill(true);
            }
        }
        (width, scanned(width, |x, y| dark[y * width + x]))
    }

    #[test]
    fn a_code_is_as_wide_as_requested_and_has_a_margin() {
        let text = "https://pay.dojo.tech/checkout/pi_CggWPWfehUWgVNnDdsdLMQ";
        for requested in [50, 300, 999, 2000] {
            let image = Image::new(text, requested).unwrap();
            let modules = image.code.width() + 8;
            let (width, read) = scanned_png(&image.png().unwrap());
            assert_eq!(read, text);
            assert!(
                (usize::from(requested)..usize::from(requested) + modules).contains(&width),
                "{width}"
            );
            assert_eq!(width % modules, 0);
            assert_eq!(scanned_svg(&image.svg()), (width, text.to_owned()));
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_an_error() {
        assert!(matches!(
            Image::new(&"x".repeat(4000), 300),
            Err(Error::TooLong(_))
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_url_is_read_back(path in "[!-~]{1,300}") {
            let text = format!("https://pay.example.com/{path}");
            let image = Image::new(&text, 400).unwrap();
            prop_assert_eq!(scanned_png(&image.png().unwrap()).1, text.clone());
            prop_assert_eq!(scanned_svg(&image.svg()).1, text);
        }
    }
}
